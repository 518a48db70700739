/**
 * Looks for the server while links wait for it, so that they need not sit out a long pause once it is back:
 * pauses grow with every failure, and somebody may have been away for just a moment.
 */

/** Time between looks, each a little off so that pages spread. Well below the longest pause of a link. */
const LOOK_MS = 3_000;
const JITTER = 0.2;
/** An answer that takes longer is none. */
const ANSWER_MS = 3_000;
/** Told to the window when the server is back. */
export const RETURNED = 'holdfast:returned';

/**
 * Looks until the server can do its work; says whether it was away meanwhile. Where it was not, something
 * else is wrong with the link, and trying at once would not help.
 */
export async function wasAway(
  isReady: () => Promise<boolean>,
  pause: () => Promise<void>,
): Promise<boolean> {
  for (let away = false; ; away = true) {
    if (await isReady()) return away;
    await pause();
  }
}

async function isReady(): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(ANSWER_MS);
    return (await fetch('/readyz', { cache: 'no-store', signal })).ok;
  } catch {
    return false;
  }
}

function pause(): Promise<void> {
  const wait = LOOK_MS * (1 + JITTER * (2 * Math.random() - 1));
  return new Promise((resolve) => setTimeout(resolve, wait));
}

let looking = false;

/** Looks for the server, unless that is being done, and tells the window when it is back. */
export async function lookForServer(): Promise<void> {
  if (looking) return;
  looking = true;
  try {
    if (await wasAway(isReady, pause)) window.dispatchEvent(new Event(RETURNED));
  } finally {
    looking = false;
  }
}
