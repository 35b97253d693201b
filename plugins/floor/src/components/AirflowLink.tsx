import { Link, type LinkProps } from "@chakra-ui/react";
import type { MouseEvent } from "react";

import { airflowUrl, openInAirflow } from "../lib/airflow";

/** A link out of this page into Airflow's UI, the Data Docs or MLflow. */
export function AirflowLink({ href, newTab = false, ...rest }: LinkProps & { href: string; newTab?: boolean }) {
  const url = airflowUrl(href);
  const follow = (event: MouseEvent) => {
    event.preventDefault();
    openInAirflow(url, newTab || event.ctrlKey || event.metaKey || event.shiftKey || event.button === 1);
  };
  return <Link href={url} target="_parent" onClick={follow} onAuxClick={follow} {...rest} />;
}
