import { createHashRouter, Navigate } from "react-router";

import { Shell } from "./components/Shell";
import { DagTab } from "./pages/DagTab";
import { LineLayout } from "./pages/LineLayout";
import { Overview } from "./pages/Overview";
import { Status } from "./pages/Status";

/**
 * The routes of the page follow those of the API, so that a `href` of the API leads to what shows it. They are in the
 * fragment: the page needs nothing of the server but its files, under whatever prefix.
 */
export const router = createHashRouter([
  {
    element: <Shell />,
    hydrateFallbackElement: <></>,
    children: [
      { index: true, element: <Overview /> },
      { path: "dags/:dagId", element: <DagTab /> },
      { path: "dags/:dagId/runs/:runId", lazy: async () => ({ Component: (await import("./pages/RunTab")).RunTab }) },
      {
        path: "lines/:line",
        element: <LineLayout />,
        children: [
          { index: true, element: <Status /> },
          { path: "trends", lazy: async () => ({ Component: (await import("./pages/TrendsPanel")).TrendsPanel }) },
          { path: "gates", lazy: async () => ({ Component: (await import("./pages/Gates")).Gates }) },
          { path: "windows/:day?", lazy: async () => ({ Component: (await import("./pages/Drift")).Drift }) },
          { path: "rollouts", lazy: async () => ({ Component: (await import("./pages/Rollouts")).Rollouts }) },
          { path: "pareto", lazy: async () => ({ Component: (await import("./pages/Losses")).Losses }) },
          { path: "lead-times", lazy: async () => ({ Component: (await import("./pages/LeadTimes")).LeadTimesPanel }) },
          { path: "quarantine", lazy: async () => ({ Component: (await import("./pages/Quarantine")).Quarantine }) },
          {
            path: "quarantine/:table/:day",
            lazy: async () => ({ Component: (await import("./pages/QuarantinedRows")).QuarantinedRows }),
          },
          { path: "units", lazy: async () => ({ Component: (await import("./pages/Units")).Units }) },
          { path: "units/:kind/:unit", lazy: async () => ({ Component: (await import("./pages/Unit")).Unit }) },
        ],
      },
      { path: "*", element: <Navigate to="/" replace /> },
    ],
  },
]);
