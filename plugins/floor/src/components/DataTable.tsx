import { Box, Table } from "@chakra-ui/react";
import type { Key, ReactNode } from "react";

export interface Column<T> {
  name: string;
  cell: (row: T) => ReactNode;
  /** Whether it holds numbers, which stand at the right. */
  numeric?: boolean;
  /** What the name means. */
  hint?: string;
  width?: string;
}

/** A plain table that scrolls sideways where the screen is narrow. */
export function DataTable<T>({
  label,
  columns,
  rows,
  rowKey,
  onRow,
}: {
  label: string;
  columns: ReadonlyArray<Column<T>>;
  rows: ReadonlyArray<T>;
  rowKey: (row: T) => Key;
  /** Marks a row. */
  onRow?: (row: T) => boolean;
}) {
  return (
    <Box overflowX="auto" tabIndex={0} role="region" aria-label={label}>
      <Table.Root size="sm" interactive={false} fontSize="sm">
        <Table.Header>
          <Table.Row bg="bg.subtle">
            {columns.map((column) => (
              <Table.ColumnHeader
                key={column.name}
                scope="col"
                textAlign={column.numeric ? "end" : "start"}
                fontSize="xs"
                color="fg.muted"
                fontWeight="medium"
                whiteSpace="nowrap"
                title={column.hint}
                width={column.width}
              >
                {column.name}
              </Table.ColumnHeader>
            ))}
          </Table.Row>
        </Table.Header>
        <Table.Body>
          {rows.map((row) => (
            <Table.Row key={rowKey(row)} bg={onRow?.(row) ? "brand.subtle" : "transparent"}>
              {columns.map((column) => (
                <Table.Cell
                  key={column.name}
                  textAlign={column.numeric ? "end" : "start"}
                  fontVariantNumeric="tabular-nums"
                  verticalAlign="top"
                  whiteSpace={column.numeric ? "nowrap" : undefined}
                >
                  {column.cell(row)}
                </Table.Cell>
              ))}
            </Table.Row>
          ))}
        </Table.Body>
      </Table.Root>
    </Box>
  );
}
