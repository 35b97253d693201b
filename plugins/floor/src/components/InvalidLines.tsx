import { Box, Code, Flex, Heading, Stack, Text } from "@chakra-ui/react";
import { CircleAlert } from "lucide-react";

import type { InvalidLine } from "../api/models";
import { plural } from "../lib/format";

/** Lines that are not on the floor because their line.yaml is wrong, and what is wrong with each. */
export function InvalidLines({ lines }: { lines: InvalidLine[] }) {
  return (
    <Flex role="alert" gap={3} bg="bg.panel" borderWidth="1px" borderColor="red.line" borderRadius="md" px={4} py={3}>
      <Box color="red.line" pt="2px" flexShrink={0}>
        <CircleAlert size={16} aria-hidden />
      </Box>
      <Box flex="1" minWidth={0}>
        <Heading as="h2" fontSize="sm" fontWeight="semibold" lineHeight="1.4">
          {plural(lines.length, "line is", "lines are")} not valid
        </Heading>
        <Text fontSize="xs" color="fg.muted">
          Nothing of such a line starts until its line.yaml is mended; the other lines go on.
        </Text>
        <Stack as="ul" listStyleType="none" gap={1} mt={2}>
          {lines.map(({ folder, message }) => (
            <Text as="li" key={folder} overflowWrap="anywhere">
              <Code>{folder}/line.yaml</Code> {message}
            </Text>
          ))}
        </Stack>
      </Box>
    </Flex>
  );
}
