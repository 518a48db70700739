/** When to try again: 1, 2, 4, 8, 16 s, then every 16 s, each a little off so that pages spread. */

const LONGEST_MS = 16_000;
/** Largest part of a delay that is added or taken away. */
const JITTER = 0.2;

/**
 * Delay in ms before the attempt number `attempt`, counted from 0.
 * `random` is at least 0 and less than 1.
 */
export function delayMs(attempt: number, random: number): number {
  const plain = Math.min(1000 * 2 ** Math.max(0, Math.min(attempt, 10)), LONGEST_MS);
  return Math.round(plain * (1 + JITTER * (2 * random - 1)));
}
