import { Button, CloseButton, Dialog, Field, Portal, Text, Textarea } from "@chakra-ui/react";
import { useMutation } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";

import { ErrorState } from "./States";

const MIN = 3;
const MAX = 1000;

/** Ask a person why, do it, and say what became of it. What a person does here goes on the record with the reason. */
export function ReasonDialog<T>({
  trigger,
  title,
  children,
  confirm,
  act,
  done,
  onClosedDone,
}: {
  trigger: ReactNode;
  title: string;
  children: ReactNode;
  /** The word on the button that does it. */
  confirm: string;
  act: (why: string) => Promise<T>;
  /** What is shown once it is done. */
  done: (result: T) => ReactNode;
  /** Called when it was done and the dialog is closed. */
  onClosedDone?: () => void;
}) {
  const [open, setOpen] = useState(false);
  const [why, setWhy] = useState("");
  const action = useMutation({ mutationFn: act });
  const tooShort = why.trim().length < MIN;

  const change = (next: boolean) => {
    setOpen(next);
    if (next) {
      setWhy("");
      action.reset();
    } else if (action.isSuccess) onClosedDone?.();
  };

  return (
    <Dialog.Root open={open} onOpenChange={({ open: next }) => change(next)} size="sm" lazyMount unmountOnExit>
      <Dialog.Trigger asChild>{trigger}</Dialog.Trigger>
      <Portal>
        <Dialog.Backdrop />
        <Dialog.Positioner px={3}>
          <Dialog.Content>
            <Dialog.Header pb={2}>
              <Dialog.Title fontSize="md">{title}</Dialog.Title>
            </Dialog.Header>
            {action.isSuccess ? (
              <>
                <Dialog.Body role="status">{done(action.data)}</Dialog.Body>
                <Dialog.Footer>
                  <Button autoFocus onClick={() => change(false)}>
                    Close
                  </Button>
                </Dialog.Footer>
              </>
            ) : (
              <form
                onSubmit={(event) => {
                  event.preventDefault();
                  if (!tooShort) action.mutate(why.trim());
                }}
              >
                <Dialog.Body>
                  {children}
                  <Field.Root required mt={4}>
                    <Field.Label>
                      Why <Field.RequiredIndicator />
                    </Field.Label>
                    <Textarea
                      autoFocus
                      rows={3}
                      maxLength={MAX}
                      value={why}
                      onChange={(event) => setWhy(event.currentTarget.value)}
                    />
                    <Field.HelperText>It goes on the record with your name.</Field.HelperText>
                  </Field.Root>
                  {action.error && <ErrorState error={action.error} />}
                </Dialog.Body>
                <Dialog.Footer>
                  <Dialog.ActionTrigger asChild>
                    <Button variant="outline">Cancel</Button>
                  </Dialog.ActionTrigger>
                  <Button type="submit" disabled={tooShort} loading={action.isPending}>
                    {confirm}
                  </Button>
                </Dialog.Footer>
              </form>
            )}
            <Dialog.CloseTrigger asChild>
              <CloseButton size="sm" aria-label="Close" />
            </Dialog.CloseTrigger>
          </Dialog.Content>
        </Dialog.Positioner>
      </Portal>
    </Dialog.Root>
  );
}

export function Done({ children }: { children: ReactNode }) {
  return <Text color="fg">{children}</Text>;
}
