import { describe, expect, it } from 'vitest';
import { mergeEvents, mergeSession, startOf } from './events';
import type { Session, TimelineEvent } from './types';

const T0 = Date.parse('2026-01-05T10:00:00Z');

function event(seq: number, kind: string, more: Partial<TimelineEvent> = {}): TimelineEvent {
  const at = new Date(T0 + seq * 1000).toISOString();
  return { seq, at, kind, why: `why ${seq}`, by: 'host', ...more };
}

function session(more: Partial<Session> = {}): Session {
  const at = new Date(T0).toISOString();
  return {
    id: 'a',
    state: 'starting',
    name: '',
    provider: 'desktop',
    owner: 'admin',
    screen: { width: 1280, height: 800 },
    memoryMib: 2048,
    vcpus: 2,
    createdAt: at,
    stateSince: at,
    expiresAt: at,
    lastHeartbeat: at,
    url: '/?session=a',
    ...more,
  };
}

describe('merging events', () => {
  it('appends what is new', () => {
    const merged = mergeEvents([event(1, 'a')], [event(2, 'b'), event(3, 'c')]);
    expect(merged.map((e) => e.seq)).toEqual([1, 2, 3]);
  });

  it('keeps each once, in order, whatever order they arrive in', () => {
    const known = [event(1, 'a'), event(4, 'd')];
    const merged = mergeEvents(known, [event(4, 'd'), event(2, 'b'), event(5, 'e'), event(2, 'b')]);
    expect(merged.map((e) => e.seq)).toEqual([1, 2, 4, 5]);
  });

  it('returns the same list for a replay', () => {
    const known = [event(1, 'a'), event(2, 'b')];
    expect(mergeEvents(known, [event(1, 'a'), event(2, 'b')])).toBe(known);
    expect(mergeEvents(known, [])).toBe(known);
  });
});

describe('merging sessions', () => {
  it('replaces one in its place and puts a new one by its age', () => {
    const old = session({ id: 'old', createdAt: '2026-01-01T00:00:00Z' });
    const young = session({ id: 'young', createdAt: '2026-01-03T00:00:00Z' });
    const middle = session({ id: 'middle', createdAt: '2026-01-02T00:00:00Z' });
    const list = mergeSession([young, old], middle);
    expect(list.map((s) => s.id)).toEqual(['young', 'middle', 'old']);
    const changed = mergeSession(list, { ...old, state: 'ended' });
    expect(changed.map((s) => s.state)).toEqual(['starting', 'starting', 'ended']);
  });
});

describe('a start', () => {
  const begun = event(1, 'session.state', { from: 'requested', to: 'starting' });

  it('shows the queue while nothing has begun', () => {
    const text = 'Waiting for room, place 2 in the queue: 4 machines start now.';
    const start = startOf(session({ state: 'requested', detail: text }), [
      event(0, 'session.state', { to: 'requested' }),
      event(1, 'session.queued'),
    ]);
    expect(start.queue).toBe(text);
    expect(start.steps[0]).toMatchObject({ kind: 'queue', status: 'active', beganAt: T0 });
    expect(start.steps.slice(1).every((s) => s.status === 'pending')).toBe(true);
  });

  it('times each step from the one before', () => {
    const start = startOf(session(), [begun, event(3, 'step.disk'), event(7, 'step.network')]);
    expect(start.queue).toBeNull();
    expect(start.steps.map((s) => [s.kind, s.status, s.tookMs])).toEqual([
      ['queue', 'done', 1000],
      ['step.disk', 'done', 2000],
      ['step.network', 'done', 4000],
      ['step.start', 'active', undefined],
      ['step.agent', 'pending', undefined],
      ['step.claim', 'pending', undefined],
      ['step.desktop', 'pending', undefined],
      ['step.browser', 'pending', undefined],
    ]);
    expect(start.steps[3]?.beganAt).toBe(T0 + 7000);
  });

  it('counts a step as done when a later one is', () => {
    const start = startOf(session(), [begun, event(9, 'step.agent')]);
    expect(start.steps.slice(0, 5).every((s) => s.status === 'done')).toBe(true);
  });

  it('begins anew with each attempt and says why', () => {
    const start = startOf(session(), [
      begun,
      event(2, 'step.disk'),
      event(5, 'step.retry', { why: 'The machine ended.' }),
      event(6, 'step.disk'),
    ]);
    expect(start.attempt).toBe(2);
    expect(start.retryWhy).toBe('The machine ended.');
    expect(start.steps.map((s) => s.kind)).not.toContain('queue');
    expect(start.steps[0]).toMatchObject({ kind: 'step.disk', status: 'done', tookMs: 1000 });
    expect(start.steps[1]?.status).toBe('active');
  });

  it('begins anew when the machine of a session in use is started again', () => {
    const start = startOf(session(), [
      begun,
      event(2, 'step.disk'),
      event(8, 'step.desktop'),
      event(60, 'session.state', { from: 'degraded', to: 'starting', why: 'It died.' }),
    ]);
    expect(start.retryWhy).toBe('It died.');
    expect(start.steps[0]).toMatchObject({ kind: 'step.disk', status: 'active' });
  });
});
