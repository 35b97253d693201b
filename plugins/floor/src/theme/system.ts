import { createSystem, defaultConfig, defineConfig } from "@chakra-ui/react";

import { airflowBlack, airflowColors } from "./airflow";

const shades = (color: string) =>
  Object.fromEntries(
    Object.entries(airflowColors[color as keyof typeof airflowColors]).map(([shade, value]) => [shade, { value }]),
  );

const roles = (color: string) => ({
  solid: { value: `{colors.${color}.600}` },
  contrast: { value: { _light: "white", _dark: "white" } },
  fg: { value: { _light: `{colors.${color}.800}`, _dark: `{colors.${color}.200}` } },
  muted: { value: { _light: `{colors.${color}.200}`, _dark: `{colors.${color}.800}` } },
  subtle: { value: { _light: `{colors.${color}.100}`, _dark: `{colors.${color}.900}` } },
  emphasized: { value: { _light: `{colors.${color}.300}`, _dark: `{colors.${color}.700}` } },
  focusRing: { value: { _light: `{colors.${color}.800}`, _dark: `{colors.${color}.200}` } },
  chart: { value: { _light: `{colors.${color}.500}`, _dark: `{colors.${color}.400}` } },
  line: { value: { _light: `{colors.${color}.600}`, _dark: `{colors.${color}.400}` } },
});

/** In the dark, panels lie on the page and differ by their border alone; what is within them is lighter. */
const darkSurfaces = {
  bg: {
    panel: { value: { _light: "{colors.white}", _dark: "{colors.black}" } },
    subtle: { value: { _light: "{colors.gray.50}", _dark: "oklch(0.265 0.034 262)" } },
    muted: { value: { _light: "{colors.gray.100}", _dark: "oklch(0.29 0.036 260)" } },
    emphasized: { value: { _light: "{colors.gray.200}", _dark: "{colors.gray.700}" } },
  },
  border: {
    DEFAULT: { value: { _light: "{colors.gray.200}", _dark: "oklch(0.36 0.038 256)" } },
    muted: { value: { _light: "{colors.gray.100}", _dark: "oklch(0.3 0.036 258)" } },
    emphasized: { value: { _light: "{colors.gray.300}", _dark: "oklch(0.46 0.045 253)" } },
  },
};

const names = Object.keys(airflowColors);

/** Chakra as Airflow's own UI sets it up: its colours, its small controls. */
export const system = createSystem(
  defaultConfig,
  defineConfig({
    globalCss: {
      "html, body": { bg: "bg", color: "fg" },
      body: { fontSize: "sm", lineHeight: "1.45" },
      ":focus-visible": { outlineColor: "brand.focusRing" },
    },
    theme: {
      tokens: {
        colors: {
          black: { value: airflowBlack },
          ...Object.fromEntries(names.map((name) => [name, shades(name)])),
        },
      },
      semanticTokens: {
        colors: {
          ...Object.fromEntries(names.map((name) => [name, roles(name)])),
          ...darkSurfaces,
        },
      },
      recipes: { button: { base: { colorPalette: "brand" }, defaultVariants: { size: "sm" } } },
      slotRecipes: { table: { slots: [], defaultVariants: { size: "sm" } } },
    },
  }),
);
