/** All sessions as they are now: listed, then followed. */

import { SvelteMap } from 'svelte/reactivity';
import { api, streams } from './api';
import { auth } from './auth.svelte';
import { isOver, mergeSession } from './events';
import { LinkRunner, onWake } from './linkRunner.svelte';
import { asApiError, type ApiError } from './problem';
import { openStream, type SseMessage } from './sse';
import type { Session, SessionVm } from './types';

/** Heartbeats alone send no event, so leases are read again from time to time. */
const RELIST_MS = 20_000;
const HIDDEN_MS = 20_000;
/** Of more sessions than this nobody reads the cost in a list. */
const MOST_VMS = 50;

export class ListLive {
  /** Newest first; `null` until they were read. */
  sessions: readonly Session[] | null = $state.raw(null);
  error: ApiError | null = $state.raw(null);
  /** The machines of the sessions, by session, with what they use. */
  readonly vms = new SvelteMap<string, SessionVm>();

  /** Counts lists: an answer that a newer one overtook is dropped. */
  #turn = 0;

  readonly stream = new LinkRunner((wire) =>
    openStream(streams.ofAll(), null, {
      onOpen: () => {
        wire.opened();
        // What happened before the stream stood is not in it.
        void this.list();
      },
      onMessage: (message) => this.#take(message),
      onClose: (code, reason) => {
        if (code === 4401) auth.lost();
        wire.closed(code, reason);
      },
    }),
  );

  open(): () => void {
    this.stream.start();
    void this.list();
    let hidden: ReturnType<typeof setTimeout> | undefined;
    const timer = setInterval(() => {
      if (document.visibilityState === 'visible') void this.list();
    }, RELIST_MS);
    const visibility = () => {
      clearTimeout(hidden);
      if (document.visibilityState === 'visible') this.stream.start();
      else hidden = setTimeout(() => this.stream.stop(), HIDDEN_MS);
    };
    document.addEventListener('visibilitychange', visibility);
    const unwake = onWake(() => {
      this.stream.wake();
      if (this.error !== null) void this.list();
    });
    return () => {
      clearInterval(timer);
      clearTimeout(hidden);
      document.removeEventListener('visibilitychange', visibility);
      unwake();
      this.stream.stop();
    };
  }

  async list(): Promise<void> {
    if (auth.needed) return;
    const turn = ++this.#turn;
    try {
      const sessions = await api.sessions();
      if (turn === this.#turn) {
        this.sessions = sessions;
        this.error = null;
        void this.#readVms(sessions);
      }
    } catch (error) {
      if (turn === this.#turn) this.error = asApiError(error);
    }
  }

  async #readVms(sessions: readonly Session[]): Promise<void> {
    const running = sessions.filter((s) => !isOver(s.state)).slice(0, MOST_VMS);
    await Promise.allSettled(
      running.map(async ({ id }) => {
        this.vms.set(id, await api.vm(id));
      }),
    );
  }

  resume(): void {
    this.stream.unblock();
    void this.list();
  }

  #take(message: SseMessage): void {
    if (message.event === 'resync') {
      void this.list();
    } else if (message.event === 'session') {
      // A list on its way may be older than this.
      this.#turn += 1;
      const session = JSON.parse(message.data) as Session;
      this.sessions = mergeSession(this.sessions ?? [], session);
      this.error = null;
    }
  }
}
