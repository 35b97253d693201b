/** Airflow keeps what the user chose ("light", "dark" or "system") under this key and sets a class on `html`. */
const KEY = "theme";
const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

function apply(): void {
  const chosen = localStorage.getItem(KEY);
  const mode = chosen === "dark" || chosen === "light" ? chosen : darkSystem.matches ? "dark" : "light";
  const root = document.documentElement;
  root.classList.remove("light", "dark");
  root.classList.add(mode);
  root.style.colorScheme = mode;
}

/** Look like Airflow's UI around this page, now and when the user changes it there. */
export function followAirflowTheme(): void {
  apply();
  darkSystem.addEventListener("change", apply);
  window.addEventListener("storage", (event) => {
    if (event.key === KEY || event.key === null) apply();
  });
}
