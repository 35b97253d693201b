/**
 * The way out of the frame that Airflow shows this page in. The frame is sandboxed without the right to navigate its
 * parent or to open windows, so a link is followed by the parent's own document, which has the same origin.
 */

/** The window that shows Airflow: the parent, or this one where the page was opened by itself. */
export function airflowWindow(): Window {
  try {
    return window.parent.document ? window.parent : window;
  } catch {
    return window; // another origin frames us: stay here
  }
}

/** Follow a link in Airflow's window, or in a tab of its own. */
export function openInAirflow(href: string, newTab: boolean): void {
  const { document } = airflowWindow();
  const link = document.createElement("a");
  link.href = href;
  if (newTab) {
    link.target = "_blank";
    link.rel = "noopener";
  }
  document.body.append(link);
  link.click();
  link.remove();
}

/** Absolute URL of a path of Airflow's UI or of another page that it serves, under whatever prefix it is served. */
export function airflowUrl(path: string): string {
  if (/^https?:/.test(path)) return path;
  const root = new URL("..", pageRoot());
  return new URL(path.replace(/^\//, ""), root).href;
}

/** Where this page lives, e.g. https://host/floor/. */
export function pageRoot(): URL {
  return new URL(".", window.location.href.split("#")[0]);
}

/** Keep the place in the address bar of the nav page's parent, so that a reload or a shared link leads back here. */
export function mirrorPlace(): void {
  const outer = airflowWindow();
  if (outer === window) return;
  const marker = "/plugin/floor";
  const at = outer.location.pathname.indexOf(marker);
  if (at < 0 || outer.location.pathname.slice(0, at).includes("/dags/")) return;
  const place = outer.location.pathname.slice(0, at + marker.length) + window.location.pathname + window.location.hash;
  if (outer.location.pathname + outer.location.hash !== place) {
    outer.history.replaceState(outer.history.state, "", place);
  }
}
