/**
 * The state machine of a link to the server: a desktop, a terminal, or a stream of events.
 *
 *   idle ──start──> connecting ──opened──> open
 *                     │    ^                 │ closed
 *              closed v    │ due, wake, retry v
 *                    waiting <───────────────┘
 *   closed for good ──> stopped          signed out ──> blocked ──unblock──> connecting
 *
 * Pure: time and chance are arguments. The sockets are somebody else's (see linkRunner.svelte.ts).
 */

import { delayMs } from './backoff';

export type Phase = 'idle' | 'connecting' | 'open' | 'waiting' | 'blocked' | 'stopped';

/** Why a link is not open. */
export type Cause =
  /** Nothing is known but that it broke: network, server, or something between. */
  | 'network'
  /** The server stopped on purpose and will be back. */
  | 'restart'
  /** Pings were not answered, or nothing was heard for too long. */
  | 'silent'
  /** The session's machine is being started. */
  | 'starting'
  /** The session's machine closed the connection or does not answer. */
  | 'machine'
  /** The server cannot serve it now: its store does not answer, for example. */
  | 'unavailable'
  /** No valid access token. */
  | 'signed_out'
  /** The session is over. */
  | 'ended'
  /** There is no such session. */
  | 'missing';

export interface LinkState {
  phase: Phase;
  cause: Cause | null;
  /** What the other side said about it. */
  reason: string;
  /** Failures in a row. */
  attempt: number;
  /** When to try next, in ms of the clock given; only while waiting. */
  nextAt: number | null;
  openedAt: number | null;
  triedAt: number | null;
  /** It was open at least once. */
  wasOpen: boolean;
}

export type LinkEvent =
  | { type: 'start' }
  | { type: 'opened' }
  /** The connection ended, or could not be made; `code` as of a WebSocket. */
  | { type: 'closed'; code: number; reason: string }
  /** The time to try again came. */
  | { type: 'due' }
  /** The network, the tab or the window came back. */
  | { type: 'wake' }
  /** A person asked for it. */
  | { type: 'retry' }
  /** No valid access token: nothing is tried before somebody signs in. */
  | { type: 'block' }
  /** What blocked or stopped it is over. */
  | { type: 'unblock' }
  | { type: 'stop' };

/** A link that stood this long was good: its end starts the count of failures anew. */
export const GOOD_MS = 5_000;
/** Pause between looks at a machine that is starting; the events usually tell sooner. */
export const STARTING_MS = 4_000;
/** A wake-up starts the next attempt no sooner than this after the one before. */
const WAKE_MS = 500;

/** Close codes: 44xx and 45xx are the server's own, as the HTTP statuses; 4401 is the page's own. */
export function causeOf(code: number): Cause {
  switch (code) {
    case 4401:
      return 'signed_out';
    case 4404:
      return 'missing';
    case 4410:
      return 'ended';
    case 4409:
      return 'starting';
    case 4502:
      return 'machine';
    case 4503:
      return 'unavailable';
    case 4408:
      return 'silent';
    case 1012:
      return 'restart';
    default:
      return 'network';
  }
}

export function initialLink(): LinkState {
  return {
    phase: 'idle',
    cause: null,
    reason: '',
    attempt: 0,
    nextAt: null,
    openedAt: null,
    triedAt: null,
    wasOpen: false,
  };
}

/** The state after `event`. The same object when nothing changes. */
export function step(state: LinkState, event: LinkEvent, now: number, random: number): LinkState {
  switch (event.type) {
    case 'start':
      return state.phase === 'idle' ? connecting(state, now) : state;
    case 'opened':
      if (state.phase !== 'connecting') return state;
      return { ...state, phase: 'open', cause: null, reason: '', openedAt: now, wasOpen: true };
    case 'closed':
      if (state.phase !== 'connecting' && state.phase !== 'open') return state;
      return closed(state, event.code, event.reason, now, random);
    case 'due':
      return state.phase === 'waiting' ? connecting(state, now) : state;
    case 'wake':
      if (state.phase !== 'waiting') return state;
      if (state.triedAt !== null && now - state.triedAt < WAKE_MS) {
        const soon = state.triedAt + WAKE_MS;
        if (state.nextAt !== null && state.nextAt <= soon) return state;
        return { ...state, attempt: 0, nextAt: soon };
      }
      // What just came back may still stumble: failures are counted anew.
      return connecting({ ...state, attempt: 0 }, now);
    case 'retry':
      return state.phase === 'waiting' ? connecting({ ...state, attempt: 0 }, now) : state;
    case 'block':
      // An open link was checked when it was opened and goes on.
      if (state.phase !== 'waiting' && state.phase !== 'connecting') return state;
      return { ...state, phase: 'blocked', cause: 'signed_out', reason: '', nextAt: null };
    case 'unblock': {
      const held = ['blocked', 'stopped', 'waiting'].includes(state.phase);
      return held ? connecting({ ...state, attempt: 0 }, now) : state;
    }
    case 'stop':
      return { ...initialLink(), wasOpen: state.wasOpen };
  }
}

function connecting(state: LinkState, now: number): LinkState {
  return { ...state, phase: 'connecting', nextAt: null, openedAt: null, triedAt: now };
}

function closed(
  state: LinkState,
  code: number,
  reason: string,
  now: number,
  random: number,
): LinkState {
  const cause = causeOf(code);
  const base = { ...state, cause, reason, openedAt: null, nextAt: null };
  if (cause === 'ended' || cause === 'missing') return { ...base, phase: 'stopped' };
  if (cause === 'signed_out') return { ...base, phase: 'blocked' };
  if (cause === 'starting') {
    return { ...base, phase: 'waiting', attempt: 0, nextAt: now + STARTING_MS };
  }
  const good = state.openedAt !== null && now - state.openedAt >= GOOD_MS;
  const attempt = good ? 0 : state.attempt;
  const nextAt = now + delayMs(attempt, random);
  return { ...base, phase: 'waiting', attempt: attempt + 1, nextAt };
}

/** What to tell a person about a link that is not open. */
export function explain(cause: Cause | null): string {
  switch (cause) {
    case 'restart':
      return 'The server is restarting. Your session goes on meanwhile.';
    case 'silent':
      return 'The connection went silent.';
    case 'starting':
      return 'The machine is being started.';
    case 'machine':
      return 'The machine does not answer right now.';
    case 'unavailable':
      return 'The server cannot serve the session right now.';
    case 'signed_out':
      return 'Your access token is needed again.';
    case 'ended':
      return 'The session ended.';
    case 'missing':
      return 'There is no such session.';
    case 'network':
    case null:
      return 'The connection to the server was lost. Your session goes on meanwhile.';
  }
}
