/** Timelines: merging what arrives, and the steps of a start as they are seen in it. Pure. */

import type { Session, SessionState, TimelineEvent } from './types';

/** Both lists in order, each event once. The same list when nothing is new. */
export function mergeEvents(
  known: readonly TimelineEvent[],
  arrived: readonly TimelineEvent[],
): readonly TimelineEvent[] {
  const last = known.at(-1)?.seq ?? -Infinity;
  const first = arrived[0];
  if (first === undefined) return known;
  const isTail = arrived.every((e, i) => e.seq > (arrived[i - 1]?.seq ?? last));
  if (isTail) return [...known, ...arrived];
  const bySeq = new Map(known.map((event) => [event.seq, event]));
  const before = bySeq.size;
  for (const event of arrived) if (!bySeq.has(event.seq)) bySeq.set(event.seq, event);
  if (bySeq.size === before) return known;
  return [...bySeq.values()].sort((a, b) => a.seq - b.seq);
}

/** A session put into a list: newest first, replacing what is older. */
export function mergeSession(list: readonly Session[], session: Session): readonly Session[] {
  const index = list.findIndex((s) => s.id === session.id);
  if (index < 0) return [...list, session].sort(newestFirst);
  return list.map((s, i) => (i === index ? session : s));
}

function newestFirst(a: Session, b: Session): number {
  return b.createdAt.localeCompare(a.createdAt) || b.id.localeCompare(a.id);
}

export type StepStatus = 'done' | 'active' | 'pending';

/** A step of a machine's start. */
export interface StartStep {
  kind: string;
  title: string;
  status: StepStatus;
  /** When it began, in ms; absent while it is pending. */
  beganAt?: number;
  /** How long it took, in ms; only when done. */
  tookMs?: number;
  /** What the event said. */
  why?: string;
}

const STEPS: readonly (readonly [kind: string, title: string])[] = [
  ['queue', 'Room on the host'],
  ['step.disk', 'Disk of its own'],
  ['step.network', 'Network of its own'],
  ['step.start', 'Power on'],
  ['step.agent', 'System starts'],
  ['step.claim', 'Made yours'],
  ['step.desktop', 'Desktop'],
  ['step.browser', 'Browser'],
];

/** What a start has come to. */
export interface Start {
  steps: readonly StartStep[];
  /** 1 for the first attempt. */
  attempt: number;
  /** Why the attempt before failed. */
  retryWhy: string | null;
  /** Place in the queue and its cause, as a sentence. */
  queue: string | null;
  /** When the current attempt began, in ms. */
  beganAt: number;
}

/** Reads a start out of a session and its timeline; of the latest attempt when there were several. */
export function startOf(session: Session, events: readonly TimelineEvent[]): Start {
  let from = 0;
  let attempt = 1;
  let retryWhy: string | null = null;
  events.forEach((event, i) => {
    if (event.kind === 'step.retry') {
      from = i + 1;
      attempt += 1;
      retryWhy = event.why;
    } else if (event.kind === 'session.state' && isStart(event.to) && isUse(event.from)) {
      // The machine of a session that was in use is started again.
      from = i;
      attempt = 1;
      retryWhy = event.why;
    }
  });
  const recent = events.slice(from);
  const again = from > 0;
  const before = events[Math.max(0, again ? from - 1 : 0)];
  const beganAt = again && before ? Date.parse(before.at) : Date.parse(session.createdAt);

  const doneAt = new Map<string, TimelineEvent>();
  for (const event of recent) {
    if (event.kind.startsWith('step.') && !doneAt.has(event.kind)) doneAt.set(event.kind, event);
    if (event.kind === 'session.state' && isStart(event.to)) doneAt.set('queue', event);
  }
  const queued = [...recent].reverse().find((event) => event.kind === 'session.queued');
  const waits = session.state === 'requested';
  const queue = waits ? (session.detail ?? queued?.why ?? null) : null;

  const shown = again ? STEPS.filter(([kind]) => kind !== 'queue') : STEPS;
  // A step that a later one followed is done, also when its event was not seen.
  const lastDone = shown.reduce((last, [kind], i) => (doneAt.has(kind) ? i : last), -1);
  let clock = beganAt;
  const steps = shown.map(([kind, title], i): StartStep => {
    const event = doneAt.get(kind);
    if (event) {
      const at = Date.parse(event.at);
      const step: StartStep = {
        kind,
        title,
        status: 'done',
        beganAt: clock,
        tookMs: Math.max(0, at - clock),
        why: event.why,
      };
      clock = Math.max(clock, at);
      return step;
    }
    if (i < lastDone) return { kind, title, status: 'done' };
    if (i === lastDone + 1) return { kind, title, status: 'active', beganAt: clock };
    return { kind, title, status: 'pending' };
  });
  return { steps, attempt, retryWhy, queue, beganAt };
}

function isStart(state: string | undefined): boolean {
  return state === 'starting' || state === 'resuming';
}

function isUse(state: string | undefined): boolean {
  return state === 'ready' || state === 'degraded' || state === 'hibernated';
}

/** Whether the desktop of a session in this state can be connected to. */
export function hasDesktop(state: SessionState): boolean {
  return state === 'ready' || state === 'degraded';
}

/** Whether a session in this state is on its way to a desktop. */
export function isComing(state: SessionState): boolean {
  return state === 'requested' || state === 'starting' || state === 'resuming';
}

/** Whether nothing of a session in this state runs any more, or soon will not. */
export function isOver(state: SessionState): boolean {
  return state === 'ending' || state === 'ended' || state === 'failed';
}
