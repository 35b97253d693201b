import { useEffect, useState } from "react";
import { useSearchParams } from "react-router";

/** A value that lives in the address, so that a link or a reload shows the same. */
export function useParam(name: string, fallback: string): [string, (value: string) => void] {
  const [params, setParams] = useSearchParams();
  const set = (value: string) => {
    // The address as it is now: two values may change within one render
    const next = new URLSearchParams(window.location.hash.split("?")[1]);
    if (value === fallback) next.delete(name);
    else next.set(name, value);
    setParams(next, { replace: true });
  };
  return [params.get(name) ?? fallback, set];
}

const PAUSE_MS = 250;

/** A value of the address that a person types: what was typed, how to change it, and the value once they pause. */
export function useTypedParam(name: string): [typed: string, type: (text: string) => void, value: string] {
  const [value, setValue] = useParam(name, "");
  const [typed, setTyped] = useState(value);
  useEffect(() => {
    if (typed.trim() === value) return;
    const timer = setTimeout(() => setValue(typed.trim()), PAUSE_MS);
    return () => clearTimeout(timer);
    // setValue is new on every render; the texts alone matter
  }, [typed, value]);
  return [typed, setTyped, value];
}
