import { keepPreviousData, QueryClient, useInfiniteQuery, useQuery } from "@tanstack/react-query";

import { pageRoot } from "../lib/airflow";

/** What the API said instead of an answer. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export type Params = Record<string, string | number | undefined>;

const MARKER = "/api/v1";

/** Ask the API; `path` begins with a slash and follows `/api/v1`. */
async function call<T>(path: string, params: Params = {}, body?: unknown, signal?: AbortSignal): Promise<T> {
  const url = new URL(`.${MARKER}${path}`, pageRoot());
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== "") url.searchParams.set(name, String(value));
  }
  const request: RequestInit = { headers: { Accept: "application/json" }, credentials: "same-origin", signal };
  if (body !== undefined) {
    request.method = "POST";
    request.headers = { ...request.headers, "Content-Type": "application/json" };
    request.body = JSON.stringify(body);
  }
  const response = await fetch(url, request);
  if (!response.ok) throw new ApiError(response.status, await detail(response));
  return (await response.json()) as T;
}

async function detail(response: Response): Promise<string> {
  try {
    const answer: { detail?: unknown } = await response.json();
    if (typeof answer.detail === "string") return answer.detail;
  } catch {
    // not JSON: what follows is all that is known
  }
  return `${response.status} ${response.statusText}`.trim();
}

export function post<T>(path: string, body: unknown): Promise<T> {
  return call<T>(path, {}, body);
}

/** The page's route for a `href` of the API; null where it leads out of the API. */
export function routeOf(href: string): string | null {
  const at = href.indexOf(`/floor${MARKER}/`);
  return at < 0 ? null : href.slice(at + "/floor".length + MARKER.length);
}

/** A path of the API out of its parts, each escaped. */
export function path(...parts: string[]): string {
  return `/${parts.map(encodeURIComponent).join("/")}`;
}

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      retry: (count, error) => !(error instanceof ApiError && error.status < 500) && count < 2,
      refetchOnWindowFocus: true,
      staleTime: 5_000,
    },
  },
});

export const LIVE_MS = 10_000;
export const SLOW_MS = 60_000;

/** One answer of the API, asked for again and again while the page is seen. */
export function useApi<T>(path: string, params: Params = {}, everyMs: number = SLOW_MS, enabled = true) {
  return useQuery({
    queryKey: [path, params],
    queryFn: ({ signal }) => call<T>(path, params, undefined, signal),
    refetchInterval: everyMs,
    placeholderData: keepPreviousData,
    enabled,
  });
}

/** A list of the API, page by page. */
export function usePages<T extends { next_cursor?: string | null }>(
  path: string,
  params: Params = {},
  everyMs: number = SLOW_MS,
) {
  return useInfiniteQuery({
    queryKey: [path, params, "pages"],
    queryFn: ({ pageParam, signal }) => call<T>(path, { ...params, cursor: pageParam }, undefined, signal),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next_cursor ?? undefined,
    refetchInterval: everyMs,
    placeholderData: keepPreviousData,
  });
}
