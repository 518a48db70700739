import { describe, expect, it } from 'vitest';
import { noteStep, signInHeadline, signInRows, type Seen } from './signIn';
import type { SignIn } from './types';

const base: SignIn = { run: 1, flow: 'loopback', step: 'tool', wantsInput: false };

describe('a sign-in', () => {
  it('times its steps from when they were seen', () => {
    let seen: Seen = {};
    seen = noteStep(seen, null, base, 1000);
    seen = noteStep(seen, base, { ...base, step: 'link' }, 3500);
    seen = noteStep(seen, base, { ...base, step: 'link' }, 9000);
    const rows = signInRows({ ...base, step: 'link' }, seen);
    expect(rows.map((r) => [r.step, r.status, r.tookMs, r.beganAt])).toEqual([
      ['machine', 'done', undefined, undefined],
      ['tool', 'done', 2500, undefined],
      ['link', 'active', undefined, 3500],
      ['sign_in', 'pending', undefined, undefined],
      ['credentials', 'pending', undefined, undefined],
    ]);
  });

  it('begins anew with each run', () => {
    const seen = noteStep({ link: 5 }, { ...base, step: 'link' }, { ...base, run: 2 }, 9);
    expect(seen).toEqual({ tool: 9 });
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
});
