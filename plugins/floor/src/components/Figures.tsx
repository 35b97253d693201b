import { Box, Grid, Text } from "@chakra-ui/react";
import type { ReactNode } from "react";

/** A figure with its name above and what it rests on below. */
export function Figure({ name, value, note, title }: { name: string; value: ReactNode; note?: ReactNode; title?: string }) {
  return (
    <Box minWidth={0} title={title}>
      <Text as="dt" fontSize="xs" color="fg.muted" lineHeight="1.3">
        {name}
      </Text>
      <Text as="dd" fontSize="lg" fontWeight="semibold" fontVariantNumeric="tabular-nums" lineHeight="1.35" whiteSpace="nowrap">
        {value}
      </Text>
      {note && (
        <Text as="dd" fontSize="xs" color="fg.muted" lineHeight="1.3">
          {note}
        </Text>
      )}
    </Box>
  );
}

export function Figures({ children, min = "130px", spread = false }: { children: ReactNode; min?: string; spread?: boolean }) {
  return (
    <Grid as="dl" templateColumns={`repeat(${spread ? "auto-fit" : "auto-fill"}, minmax(${min}, 1fr))`} columnGap={5} rowGap={4}>
      {children}
    </Grid>
  );
}
