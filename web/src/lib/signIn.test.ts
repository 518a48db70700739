import { describe, expect, it } from 'vitest';
import {
  linkHint,
  octal,
  sentence,
  signInHeadline,
  signInRows,
  stepsBegun,
  whatToDo,
} from './signIn';
import type { SignIn, TimelineEvent } from './types';

const base: SignIn = {
  run: 1,
  flow: 'loopback',
  step: 'tool',
  stepSince: '2026-01-05T10:00:00Z',
  wantsInput: false,
};

describe('a sign-in', () => {
  it('tells a reason as a sentence of its own', () => {
    expect(sentence('it ended with exit code 101')).toBe('it ended with exit code 101.');
    expect(sentence('Nobody came.')).toBe('Nobody came.');
  });

  const event = (seq: number, kind: string, seconds: number): TimelineEvent => ({
    seq,
    kind,
    at: `2026-01-05T10:00:${String(seconds).padStart(2, '0')}.000Z`,
    why: '',
    by: 'guest',
  });
  const at = (seconds: number) => Date.parse(event(0, '', seconds).at);

  it('times its steps by the timeline', () => {
    const events = [
      event(1, 'session.state', 0),
      event(2, 'session.state', 1),
      event(3, 'signin.tool', 4),
      event(4, 'step.browser', 5),
      event(5, 'signin.started', 6),
    ];
    const rows = signInRows({ ...base, step: 'link' }, stepsBegun(events));
    expect(rows.map((r) => [r.step, r.status, r.tookMs, r.beganAt])).toEqual([
      ['machine', 'done', 4000, undefined],
      ['tool', 'done', 2000, undefined],
      ['link', 'active', undefined, at(6)],
      ['sign_in', 'pending', undefined, undefined],
      ['credentials', 'pending', undefined, undefined],
    ]);
  });

  it('begins anew with each run', () => {
    const events = [
      event(1, 'session.state', 0),
      event(2, 'signin.tool', 4),
      event(3, 'signin.started', 5),
      event(4, 'signin.link', 6),
      event(5, 'signin.link', 7),
    ];
    expect(stepsBegun(events)).toEqual({
      machine: at(0),
      tool: at(4),
      link: at(5),
      sign_in: at(6),
    });
    events.push(event(6, 'signin.retry', 20));
    expect(stepsBegun(events)).toEqual({ tool: at(20) });
    events.push(event(7, 'signin.started', 21), event(8, 'step.browser', 22));
    expect(stepsBegun(events)).toEqual({ tool: at(20), link: at(21) });
  });

  it('marks where it failed, and all as done when it is', () => {
    const failed = signInRows({ ...base, step: 'sign_in', outcome: 'refused' }, {});
    expect(failed.map((r) => r.status)).toEqual(['done', 'done', 'done', 'failed', 'pending']);
    const ended = signInRows(
      { ...base, step: 'done', outcome: 'failed' },
      { machine: 1, tool: 2, link: 3, done: 4 },
    );
    expect(ended.map((r) => r.status)).toEqual(['done', 'done', 'failed', 'pending', 'pending']);
    const done = signInRows({ ...base, step: 'done', outcome: 'succeeded' }, {});
    expect(done.every((r) => r.status === 'done')).toBe(true);
  });

  it('says what to do', () => {
    const headlines = (['loopback', 'paste_code', 'device_code'] as const).map((flow) =>
      signInHeadline({ ...base, flow, step: 'sign_in' }),
    );
    expect(new Set(headlines).size).toBe(3);
    expect(whatToDo({ ...base, outcome: 'refused' })).toContain('Try again');
    expect(linkHint('loopback')).toContain('that machine alone');
    expect(signInHeadline({ ...base, outcome: 'expired' })).toContain('too long');
  });

  it('writes file modes as people do', () => {
    expect([0o600, 0o100644, 0o7].map(octal)).toEqual(['0600', '0644', '0007']);
  });
});
