import { Link, type LinkProps } from "@chakra-ui/react";
import { Link as RouterLink } from "react-router";

import { routeOf } from "../api/client";
import { AirflowLink } from "./AirflowLink";

/** A link within the floor. */
export function FloorLink({ to, ...rest }: LinkProps & { to: string }) {
  const { children, ...props } = rest;
  return (
    <Link asChild color="blue.fg" {...props}>
      <RouterLink to={to}>{children}</RouterLink>
    </Link>
  );
}

/** A link that the API gave: within the floor where it leads to something that the floor shows. */
export function ApiLink({ href, ...rest }: LinkProps & { href: string }) {
  const route = routeOf(href);
  if (route !== null) return <FloorLink to={route} {...rest} />;
  return <AirflowLink href={href} newTab={!href.startsWith("/dags/")} color="blue.fg" {...rest} />;
}
