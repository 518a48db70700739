/** Runs the state machine of a link: opens and closes connections and keeps its timer. */

import { untrack } from 'svelte';
import { initialLink, step, type Cause, type LinkEvent, type LinkState } from './link';
import { RETURNED, lookForServer } from './serverReturn';

/** An attempt that has not been answered by then has failed. */
const OPEN_TIMEOUT_MS = 12_000;

/** Causes that end when the server can be reached again. */
const SERVER_AWAY: (Cause | null)[] = ['network', 'restart', 'silent', 'unavailable'];

/** What a connection tells its runner. */
export interface Wire {
  opened(): void;
  closed(code: number, reason: string): void;
}

/** Opens a connection and returns what closes it. */
export type Opener = (wire: Wire) => () => void;

export class LinkRunner {
  state: LinkState = $state.raw(initialLink());

  readonly #open: Opener;
  #close: (() => void) | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Counts connections: what an old one says is ignored. */
  #turn = 0;

  constructor(open: Opener) {
    this.#open = open;
  }

  start(): void {
    this.#apply({ type: 'start' });
  }

  stop(): void {
    this.#apply({ type: 'stop' });
  }

  /** Network, tab or window came back. */
  wake(): void {
    this.#apply({ type: 'wake' });
  }

  /** A person asked for it. */
  retry(): void {
    this.#apply({ type: 'retry' });
  }

  block(): void {
    this.#apply({ type: 'block' });
  }

  unblock(): void {
    this.#apply({ type: 'unblock' });
  }

  /** Gives up the connection as it is, as if it had been closed with `code`. */
  drop(code: number, reason: string): void {
    this.#apply({ type: 'closed', code, reason });
  }

  #apply(event: LinkEvent): void {
    // An effect that moves a link must not come to depend on where it stands.
    const before = untrack(() => this.state);
    const after = step(before, event, Date.now(), Math.random());
    if (after === before) return;
    this.state = after;
    clearTimeout(this.#timer);
    const isUp = after.phase === 'connecting' || after.phase === 'open';
    if (!isUp) this.#hangUp();
    if (after.phase === 'connecting') this.#dial();
    if (after.phase === 'waiting' && after.nextAt !== null) {
      const wait = Math.max(0, after.nextAt - Date.now());
      this.#timer = setTimeout(() => this.#apply({ type: 'due' }), wait);
      if (SERVER_AWAY.includes(after.cause)) void lookForServer();
    }
  }

  #dial(): void {
    this.#hangUp();
    const turn = ++this.#turn;
    const tell = (event: LinkEvent) => {
      if (turn === this.#turn) this.#apply(event);
    };
    this.#timer = setTimeout(
      () => tell({ type: 'closed', code: 1006, reason: 'no answer' }),
      OPEN_TIMEOUT_MS,
    );
    this.#close = this.#open({
      opened: () => tell({ type: 'opened' }),
      closed: (code, reason) => tell({ type: 'closed', code, reason }),
    });
  }

  #hangUp(): void {
    this.#turn += 1;
    const close = this.#close;
    this.#close = null;
    close?.();
  }
}

/** Calls `wake` when the network, the server, the tab or the window comes back; the function returned stops that. */
export function onWake(wake: () => void): () => void {
  const visible = () => {
    if (document.visibilityState === 'visible') wake();
  };
  const names = ['online', 'focus', 'pageshow', RETURNED] as const;
  names.forEach((name) => window.addEventListener(name, wake));
  document.addEventListener('visibilitychange', visible);
  return () => {
    names.forEach((name) => window.removeEventListener(name, wake));
    document.removeEventListener('visibilitychange', visible);
  };
}
