import { Box } from "@chakra-ui/react";
import { useEffect, useRef } from "react";
import { Outlet, ScrollRestoration, useLocation } from "react-router";

import { mirrorPlace } from "../lib/airflow";

/** What every page of the floor stands in. */
export function Shell() {
  const { pathname, search } = useLocation();
  const main = useRef<HTMLDivElement>(null);
  const first = useRef(true);

  useEffect(mirrorPlace, [pathname, search]);
  useEffect(() => {
    if (!first.current) main.current?.focus({ preventScroll: true });
    first.current = false;
  }, [pathname]);

  return (
    <Box
      as="main"
      ref={main}
      tabIndex={-1}
      outline="none"
      maxWidth="1680px"
      mx="auto"
      px={{ base: 3, md: 6 }}
      py={{ base: 3, md: 5 }}
    >
      <Outlet />
      <ScrollRestoration />
    </Box>
  );
}

/** Name the page, in the frame and to screen readers. */
export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · Factory floor`;
  }, [title]);
}
