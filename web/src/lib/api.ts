/** The typed client of the HTTP API. */

import { learnTime } from './clock.svelte';
import { ApiError, networkProblem, problemOf } from './problem';
import type {
  CreateSession,
  Explanation,
  Heartbeat,
  Provider,
  Session,
  SessionVm,
  Share,
  SignIn,
  TimelineEvent,
  Version,
  Vm,
} from './types';

const TIMEOUT_MS = 15_000;
/** A heartbeat that takes longer is taken for a lost connection. */
const HEARTBEAT_TIMEOUT_MS = 8_000;

interface Options {
  body?: unknown;
  headers?: Record<string, string>;
  timeoutMs?: number;
}

type Listener = () => void;
const signedOut = new Set<Listener>();

/** Calls `listener` whenever an answer says that no valid access token was sent. */
export function onSignedOut(listener: Listener): () => void {
  signedOut.add(listener);
  return () => signedOut.delete(listener);
}

async function request(method: string, path: string, options: Options = {}): Promise<Response> {
  const timeout = AbortSignal.timeout(options.timeoutMs ?? TIMEOUT_MS);
  const init: RequestInit = {
    method,
    signal: timeout,
    cache: 'no-store',
    credentials: 'same-origin',
    headers: { accept: 'application/json', ...options.headers },
  };
  if (options.body !== undefined) {
    init.body = JSON.stringify(options.body);
    init.headers = { ...init.headers, 'content-type': 'application/json' };
  }
  let response: Response;
  let body = '';
  try {
    response = await fetch(path, init);
    if (!response.ok) body = await response.text();
  } catch {
    throw networkProblem(timeout.aborted);
  }
  learnTime(response.headers.get('date'));
  if (response.ok) return response;
  if (response.status === 401) signedOut.forEach((listener) => listener());
  throw problemOf(response.status, body, response.headers.get('x-request-id'));
}

async function json<T>(method: string, path: string, options?: Options): Promise<T> {
  const response = await request(method, path, options);
  try {
    return (await response.json()) as T;
  } catch {
    throw new ApiError('unknown', response.status, 'The server sent an answer that is not JSON.');
  }
}

const at = (id: string, rest = '') => `/api/sessions/${encodeURIComponent(id)}${rest}`;

export const api = {
  version: () => json<Version>('GET', '/api/version'),
  providers: async () => (await json<{ providers: Provider[] }>('GET', '/api/providers')).providers,
  vms: async () => (await json<{ vms: Vm[] }>('GET', '/api/vms')).vms,

  /** Keeps an access token as this browser's cookie. */
  async login(token: string): Promise<void> {
    // Not through `request`: a token that is refused is an answer, not a loss of the sign-in.
    let response: Response;
    try {
      response = await fetch('/api/login', {
        method: 'POST',
        body: JSON.stringify({ token }),
        headers: { 'content-type': 'application/json' },
        credentials: 'same-origin',
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
    } catch {
      throw networkProblem(false);
    }
    if (!response.ok) throw problemOf(response.status, await response.text());
  },

  sessions: async () => (await json<{ sessions: Session[] }>('GET', '/api/sessions')).sessions,
  session: (id: string) => json<Session>('GET', at(id)),
  /** The same `key` makes a repeated request harmless. */
  create: (body: CreateSession, key: string) =>
    json<Session>('POST', '/api/sessions', { body, headers: { 'idempotency-key': key } }),
  end: async (id: string) => {
    await request('DELETE', at(id));
  },
  /** `used`: somebody wants the session kept, so its idle time starts afresh. */
  heartbeat: (id: string, used = false) =>
    json<Heartbeat>('POST', at(id, used ? '/heartbeat?used=true' : '/heartbeat'), {
      timeoutMs: HEARTBEAT_TIMEOUT_MS,
    }),
  vm: (id: string) => json<SessionVm>('GET', at(id, '/vm?usage=true')),
  events: async (id: string, after = 0) =>
    (await json<{ events: TimelineEvent[] }>('GET', at(id, `/events?after=${after}`))).events,
  explain: (id: string) => json<Explanation>('GET', at(id, '/explain')),
  console: async (id: string) => (await json<{ text: string }>('GET', at(id, '/console'))).text,

  hibernate: (id: string) => request('POST', at(id, '/hibernate')),
  resume: (id: string) => request('POST', at(id, '/resume')),
  fork: (id: string) => json<Session>('POST', at(id, '/fork')),
  share: (id: string, minutes: number, viewOnly: boolean) =>
    json<Share>('POST', at(id, '/shares'), { body: { viewOnly, minutes } }),

  signIn: (id: string) => json<SignIn>('GET', at(id, '/sign-in')),
  signInCode: (id: string, text: string) =>
    request('POST', at(id, '/sign-in/code'), { body: { text } }),
  signInRetry: (id: string) => request('POST', at(id, '/sign-in/retry')),
  /** Opens the link in the browser of the session's machine. */
  signInOpen: (id: string) => request('POST', at(id, '/sign-in/open')),
  /** The credentials as an age file; answers once. */
  credentials: async (id: string) => (await request('POST', at(id, '/credentials'))).blob(),
  /** The age public key that credentials are sealed to when a session names none. */
  ownerKey: async () =>
    (await json<{ recipient: string | null }>('GET', '/api/owner/key')).recipient,
};

/** Addresses of streams. */
export const streams = {
  ofSession: (id: string) => at(id, '/events'),
  ofAll: () => '/api/events',
  desktop: (id: string) => webSocketUrl(at(id, '/desktop')),
  terminal: (id: string, cols: number, rows: number) =>
    webSocketUrl(at(id, `/terminal?cols=${cols}&rows=${rows}`)),
};

function webSocketUrl(path: string): string {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  return url.href;
}

/** A name that no other request has; `crypto.randomUUID` is missing without TLS. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
