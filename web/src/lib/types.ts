/**
 * Types of the HTTP API, as in crates/holdfast-api/src/types.rs: JSON in camelCase, times as
 * RFC 3339 strings. Fields marked as optional are absent when the server has nothing to say.
 */

export type SessionState =
  | 'requested'
  | 'starting'
  | 'ready'
  | 'degraded'
  | 'hibernating'
  | 'hibernated'
  | 'resuming'
  | 'ending'
  | 'ended'
  | 'failed';

export type EndReason =
  'user_request' | 'lease_expired' | 'idle' | 'max_lifetime' | 'completed' | 'failed';

export interface Screen {
  width: number;
  height: number;
}

/** Body of `POST /api/sessions`; every field has a default. */
export interface CreateSession {
  provider?: string;
  name?: string;
  screen?: Screen;
  startUrl?: string;
  locale?: string;
  timezone?: string;
  memoryMib?: number;
  vcpus?: number;
  /** For a sign-in: the age public key that its credentials are sealed to. */
  recipient?: string;
}

export interface Session {
  id: string;
  state: SessionState;
  /** A sentence with the cause of the state. */
  detail?: string;
  endReason?: EndReason;
  name: string;
  provider: string;
  owner: string;
  screen: Screen;
  memoryMib: number;
  vcpus: number;
  vmId?: string;
  createdAt: string;
  stateSince: string;
  readyAt?: string;
  endedAt?: string;
  /** Until when somebody is known to be attached. */
  expiresAt: string;
  lastHeartbeat: string;
  url: string;
  startUrl?: string;
  locale?: string;
  timezone?: string;
  /** When it reaches its maximum lifetime, where the server tells. */
  endsAt?: string;
  /** Until when it is kept although nobody is attached, where the server tells. */
  keptUntil?: string;
}

export interface Heartbeat {
  expiresAt: string;
  /** When it counts as idle, unless somebody does something; told once that is near. */
  idleAt?: string;
}

export interface SessionVm {
  vmId: string;
  vmIP: string | null;
  state: string;
  created: string;
  lastHeartbeat: string;
  /** What it uses, where known. */
  memoryMib?: number;
  cpuMs?: number;
  diskMib?: number;
}

export interface Vm {
  id: string;
  sessionId?: string;
  hostId: string;
  state: string;
  driver: string;
  image: string;
  vmIP?: string;
  incarnation: number;
  createdAt: string;
  memoryMib?: number;
  cpuMs?: number;
  diskMib?: number;
}

export interface Provider {
  name: string;
  title: string;
  description: string;
  /** An SVG document for its tile. */
  icon?: string;
  /** For a tool to sign in. */
  flow?: SignInFlow;
  /** For a tool to sign in: it hands credentials over, so a session needs a recipient. */
  credentials?: boolean;
}

export type Actor = 'user' | 'reconciler' | 'guest' | 'host';

/** An entry of a session's timeline. */
export interface TimelineEvent {
  /** Rises with every event. */
  seq: number;
  at: string;
  /** `session.state`, `vm.state`, `step.*`, `repair.*` and others. */
  kind: string;
  from?: string;
  to?: string;
  why: string;
  by: Actor;
  vmId?: string;
}

/** Why a session is alive or dead, with the evidence. */
export interface Explanation {
  summary: string;
  /** What the host holds of the VM now. */
  machine?: { process: string; directory?: boolean; network?: boolean };
  /** Where the VM stands on the ladder of repairs. */
  health?: { rung: string; finding: string; failingSince?: string };
  lease: { live: boolean; expiresAt: string; streams: number };
  attempts: number;
  generation: number;
}

/** Abilities that a server may have; listed in `Version.features`. */
export type Feature = 'hibernate' | 'fork' | 'share' | 'sign_in';

export interface Version {
  version: string;
  driver: string;
  image?: string;
  store: string;
  owner: string;
  admin: boolean;
  features?: string[];
}

export type SignInFlow = 'loopback' | 'paste_code' | 'device_code';
export type SignInStep = 'machine' | 'tool' | 'link' | 'sign_in' | 'credentials' | 'done';
export type SignInOutcome = 'succeeded' | 'refused' | 'expired' | 'failed';

export interface CredentialFile {
  /** Relative to the home directory. */
  path: string;
  /** Bytes. */
  size: number;
  /** File mode, as a number. */
  mode: number;
}

/** Answer to `GET /api/sessions/{id}/sign-in`. */
export interface SignIn {
  /** Counts the runs of the tool; 0 before the first. */
  run: number;
  flow: SignInFlow;
  step: SignInStep;
  /** When the step began. */
  stepSince: string;
  url?: string;
  userCode?: string;
  wantsInput: boolean;
  outcome?: SignInOutcome;
  why?: string;
  /** The last lines that the tool printed. */
  output?: string;
  /** Until when the person is waited for. */
  expiresAt?: string;
  /** The sealed credentials, once there are any; `fetched` also when their time was over. */
  credentials?: { files: CredentialFile[]; fetched: boolean; expiresAt: string };
}

/** Answer to `POST /api/sessions/{id}/shares`. */
export interface Share {
  url: string;
  expiresAt: string;
}
