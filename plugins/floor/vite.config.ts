import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `base` is relative, so that the page works under any prefix that Airflow is served from.
export default defineConfig({
  base: "./",
  plugins: [react()],
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // a data: URL would need a wider content security policy
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 700,
    rolldownOptions: {
      output: {
        entryFileNames: "assets/[name]-[hash].js",
      },
    },
  },
});
