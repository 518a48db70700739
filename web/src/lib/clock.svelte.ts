/** The present, by the server's clock, once a second: ages and countdowns are read from it. */

/** A difference below this is the resolution of the Date header, not a wrong clock. */
const TOLERANCE_MS = 2_000;

let offset = 0;
let now = $state(Date.now());

setInterval(() => (now = Date.now() + offset), 1000);

export const clock = {
  /** In ms; as if the server's clock were read. Reactive. */
  get now(): number {
    return now;
  },
};

/** Learns from a Date header how far the clock of this machine is off. */
export function learnTime(date: string | null): void {
  const server = date === null ? NaN : Date.parse(date);
  if (Number.isNaN(server)) return;
  const difference = server - Date.now();
  offset = Math.abs(difference) > TOLERANCE_MS ? difference : 0;
}
