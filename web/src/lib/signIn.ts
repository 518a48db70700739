/** The steps of a sign-in as they are shown. Pure. */

import type { SignIn, SignInStep } from './types';

export const SIGN_IN_STEPS: readonly (readonly [step: SignInStep, title: string])[] = [
  ['machine', 'Machine'],
  ['tool', 'Tool'],
  ['link', 'Link'],
  ['sign_in', 'Sign-in'],
  ['credentials', 'Credentials'],
];

export type SignInStatus = 'done' | 'active' | 'pending' | 'failed';

/** When each step that was seen began, in ms; kept by whoever asks repeatedly. */
export type Seen = Readonly<Partial<Record<SignInStep, number>>>;

/** Notes that a step was reached. A new run begins anew. */
export function noteStep(seen: Seen, before: SignIn | null, now: SignIn): Seen {
  const begun: Seen = before !== null && before.run !== now.run ? {} : seen;
  return begun[now.step] === undefined
    ? { ...begun, [now.step]: Date.parse(now.stepSince) }
    : begun;
}

export interface SignInRow {
  step: SignInStep;
  title: string;
  status: SignInStatus;
  /** How long it took, in ms, where both its ends were seen. */
  tookMs?: number;
  /** When it began, in ms; only while it is active. */
  beganAt?: number;
}

export function signInRows(signIn: SignIn, seen: Seen): SignInRow[] {
  const order = SIGN_IN_STEPS.map(([step]) => step);
  const at = signIn.step === 'done' ? order.length : order.indexOf(signIn.step);
  const bad = signIn.outcome !== undefined && signIn.outcome !== 'succeeded';
  return SIGN_IN_STEPS.map(([step, title], i): SignInRow => {
    const began = seen[step];
    if (i < at) {
      const next = seen[order[i + 1] ?? 'done'];
      const row: SignInRow = { step, title, status: 'done' };
      return began !== undefined && next !== undefined ? { ...row, tookMs: next - began } : row;
    }
    if (i > at) return { step, title, status: 'pending' };
    if (bad) return { step, title, status: 'failed' };
    return began === undefined
      ? { step, title, status: 'active' }
      : { step, title, status: 'active', beganAt: began };
  });
}

/** What a person has to do or to know now. */
export function signInHeadline(signIn: SignIn): string {
  switch (signIn.outcome) {
    case 'succeeded':
      return 'Signed in';
    case 'refused':
      return 'The sign-in was refused';
    case 'expired':
      return 'The sign-in took too long';
    case 'failed':
      return 'The sign-in failed';
    case undefined:
      break;
  }
  switch (signIn.step) {
    case 'machine':
      return 'The machine is being made';
    case 'tool':
      return 'The tool is being started';
    case 'link':
      return 'Waiting for the tool’s link';
    case 'sign_in':
      if (signIn.flow === 'device_code') return 'Enter this code at the provider';
      if (signIn.flow === 'paste_code') return 'Sign in, then bring the code back';
      return 'Sign in in the machine’s browser';
    case 'credentials':
      return 'Fetching the credentials';
    case 'done':
      return 'Signed in';
  }
}

/** A file mode as people write it. */
export function octal(mode: number): string {
  return (mode & 0o7777).toString(8).padStart(4, '0');
}
