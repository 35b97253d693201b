import { Box, Flex, Heading, Text } from "@chakra-ui/react";
import { type ReactNode, useId } from "react";

/** A titled part of a page. */
export function Panel({
  title,
  hint,
  actions,
  children,
  flush = false,
}: {
  title: string;
  hint?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  /** Whether the content reaches the edges, as a table does. */
  flush?: boolean;
}) {
  const id = useId();
  return (
    <Box
      as="section"
      aria-labelledby={id}
      bg="bg.panel"
      borderWidth="1px"
      borderRadius="md"
      minWidth={0}
      overflow="hidden"
    >
      <Flex align="center" justify="space-between" gap={3} px={4} pt={3} pb={flush ? 3 : 2} wrap="wrap">
        <Box minWidth={0}>
          <Heading as="h2" id={id} fontSize="sm" fontWeight="semibold" lineHeight="1.4">
            {title}
          </Heading>
          {hint && (
            <Text fontSize="xs" color="fg.muted">
              {hint}
            </Text>
          )}
        </Box>
        {actions}
      </Flex>
      <Box px={flush ? 0 : 4} pb={flush ? 0 : 4}>
        {children}
      </Box>
    </Box>
  );
}
