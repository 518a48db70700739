import { describe, expect, it } from 'vitest';
import { noteStep, octal, signInHeadline, signInRows, type Seen } from './signIn';
import type { SignIn } from './types';

const base: SignIn = {
  run: 1,
  flow: 'loopback',
  step: 'tool',
  stepSince: '2026-01-05T10:00:00Z',
  wantsInput: false,
};

describe('a sign-in', () => {
  it('times its steps from when they were seen', () => {
    const link: SignIn = { ...base, step: 'link', stepSince: '2026-01-05T10:00:02.500Z' };
    let seen: Seen = {};
    seen = noteStep(seen, null, base);
    seen = noteStep(seen, base, link);
    seen = noteStep(seen, link, link);
    const rows = signInRows({ ...base, step: 'link' }, seen);
    expect(rows.map((r) => [r.step, r.status, r.tookMs, r.beganAt])).toEqual([
      ['machine', 'done', undefined, undefined],
      ['tool', 'done', 2500, undefined],
      ['link', 'active', undefined, Date.parse(link.stepSince)],
      ['sign_in', 'pending', undefined, undefined],
      ['credentials', 'pending', undefined, undefined],
    ]);
  });

  it('begins anew with each run', () => {
    const seen = noteStep({ link: 5 }, { ...base, step: 'link' }, { ...base, run: 2 });
    expect(seen).toEqual({ tool: Date.parse(base.stepSince) });
  });

  it('marks where it failed, and all as done when it is', () => {
    const failed = signInRows({ ...base, step: 'sign_in', outcome: 'refused' }, {});
    expect(failed.map((r) => r.status)).toEqual(['done', 'done', 'done', 'failed', 'pending']);
    const done = signInRows({ ...base, step: 'done', outcome: 'succeeded' }, {});
    expect(done.every((r) => r.status === 'done')).toBe(true);
  });

  it('says what to do', () => {
    const headlines = (['loopback', 'paste_code', 'device_code'] as const).map((flow) =>
      signInHeadline({ ...base, flow, step: 'sign_in' }),
    );
    expect(new Set(headlines).size).toBe(3);
    expect(signInHeadline({ ...base, outcome: 'expired' })).toContain('too long');
  });

  it('writes file modes as people do', () => {
    expect([0o600, 0o100644, 0o7].map(octal)).toEqual(['0600', '0644', '0007']);
  });
});
