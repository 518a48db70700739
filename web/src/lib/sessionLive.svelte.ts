/**
 * A session as it is now: followed by its event stream, held by heartbeats.
 *
 * While the tab is hidden the stream is let go: a browser gives all tabs of a server six
 * connections together, and a seventh tab would wait for ever. Open desktops hold the lease then.
 */

import { api, streams } from './api';
import { auth } from './auth.svelte';
import { isOver, mergeEvents } from './events';
import { LinkRunner, onWake } from './linkRunner.svelte';
import { asApiError, type ApiError } from './problem';
import { openStream, type SseMessage } from './sse';
import type { Session, SessionVm, TimelineEvent } from './types';

const HEARTBEAT_MS = 10_000;
/** How often what the machine uses is read, while somebody looks. */
const USAGE_MS = 10_000;
/** How long after a key or a click the server is asked; by then it saw them. */
const TOUCHED_MS = 500;
/** How long a hidden tab keeps its stream, so that a glance elsewhere costs nothing. */
const HIDDEN_MS = 20_000;

export class SessionLive {
  readonly id: string;
  session: Session | null = $state.raw(null);
  events: readonly TimelineEvent[] = $state.raw([]);
  vm: SessionVm | null = $state.raw(null);
  /** Until when the session is known to be protected; newer than the one in `session`. */
  expiresAt: string | null = $state(null);
  /** When it counts as idle if nobody does anything; `null` while that is not near. */
  idleAt: string | null = $state(null);
  /** Why the last heartbeat failed. */
  heartbeatError: ApiError | null = $state.raw(null);

  readonly stream = new LinkRunner((wire) => {
    const last = this.events.at(-1);
    return openStream(streams.ofSession(this.id), last ? String(last.seq) : null, {
      onOpen: wire.opened,
      onMessage: (message) => this.#take(message),
      onClose: (code, reason) => {
        if (code === 4401) auth.lost();
        wire.closed(code, reason);
      },
    });
  });

  /** Other links to the same session: woken, blocked and doubted together. */
  readonly #links = new Set<{ runner: LinkRunner; heardAt: () => number }>();
  readonly #undo: (() => void)[] = [];
  #hiddenTimer: ReturnType<typeof setTimeout> | undefined;
  #usedTimer: ReturnType<typeof setTimeout> | undefined;
  #beating = false;
  #beats = 0;

  constructor(id: string) {
    this.id = id;
  }

  /** Begins; the function returned ends it. */
  open(): () => void {
    this.stream.start();
    const timer = setInterval(() => void this.beat(), HEARTBEAT_MS);
    const usage = setInterval(() => {
      if (document.visibilityState === 'visible' && this.vm !== null) void this.readVm();
    }, USAGE_MS);
    const visibility = () => {
      clearTimeout(this.#hiddenTimer);
      if (document.visibilityState === 'visible') this.#follow();
      else this.#hiddenTimer = setTimeout(() => this.stream.stop(), HIDDEN_MS);
    };
    document.addEventListener('visibilitychange', visibility);
    this.#undo.push(
      onWake(() => this.#wake()),
      () => clearInterval(timer),
      () => clearInterval(usage),
      () => clearTimeout(this.#hiddenTimer),
      () => clearTimeout(this.#usedTimer),
      () => document.removeEventListener('visibilitychange', visibility),
      () => this.stream.stop(),
    );
    return () => this.#undo.splice(0).forEach((undo) => undo());
  }

  /** Adds a link that shares this session's fate; `heardAt` tells when its other side last spoke. */
  attach(runner: LinkRunner, heardAt: () => number): () => void {
    const link = { runner, heardAt };
    this.#links.add(link);
    return () => this.#links.delete(link);
  }

  /**
   * Says that somebody is here, and with `used` that the session is to be kept. A failure makes
   * silent links suspect.
   */
  async beat(used = false): Promise<void> {
    if ((this.#beating && !used) || auth.needed) return;
    if (this.session?.state === 'ended' || this.stream.state.phase === 'stopped') return;
    this.#beating = true;
    const number = (this.#beats += 1);
    const began = Date.now();
    try {
      const answer = await api.heartbeat(this.id, used);
      this.expiresAt = answer.expiresAt;
      // An answer may come after that of a later question.
      if (number === this.#beats) this.idleAt = answer.idleAt ?? null;
      if (this.heartbeatError !== null) this.#wake();
      this.heartbeatError = null;
    } catch (thrown) {
      const error = asApiError(thrown);
      this.heartbeatError = error.code === 'network' ? error : null;
      if (error.code === 'network') this.#doubt(began);
    } finally {
      this.#beating = false;
    }
  }

  /** Somebody typed or clicked, which the server hears of by itself: asks whether the warning is over. */
  touched(): void {
    if (this.idleAt === null) return;
    clearTimeout(this.#usedTimer);
    this.#usedTimer = setTimeout(() => void this.beat(), TOUCHED_MS);
  }

  /** Reads the machine's facts again. */
  async readVm(): Promise<void> {
    try {
      this.vm = await api.vm(this.id);
    } catch {
      this.vm = null;
    }
  }

  /** After somebody signed in. */
  resume(): void {
    this.stream.unblock();
    for (const { runner } of this.#links) {
      if (runner.state.phase === 'blocked') runner.unblock();
    }
    void this.beat();
  }

  /** The sign-in was lost. */
  block(): void {
    this.stream.block();
    for (const { runner } of this.#links) runner.block();
  }

  #follow(): void {
    if (this.session?.state !== 'ended') this.stream.start();
  }

  #wake(): void {
    this.#follow();
    this.stream.wake();
    for (const { runner } of this.#links) runner.wake();
    if (this.heartbeatError !== null) void this.beat();
  }

  /** No answer since `began`: a link on which nothing was heard since is taken for dead. */
  #doubt(began: number): void {
    for (const { runner, heardAt } of this.#links) {
      if (runner.state.phase === 'open' && heardAt() < began) {
        runner.drop(4408, 'no answer to a heartbeat');
      }
    }
  }

  #take(message: SseMessage): void {
    const value: unknown = JSON.parse(message.data);
    if (message.event !== 'session') {
      this.events = mergeEvents(this.events, [value as TimelineEvent]);
      return;
    }
    const before = this.session;
    this.session = value as Session;
    if (this.expiresAt === null || this.session.expiresAt > this.expiresAt) {
      this.expiresAt = this.session.expiresAt;
    }
    if (before?.state !== this.session.state || before.vmId !== this.session.vmId) {
      if (isOver(this.session.state)) this.vm = null;
      else void this.readVm();
    }
    if (before === null) void this.beat();
    // Nothing more will happen to it.
    if (this.session.state === 'ended') this.stream.stop();
  }
}
