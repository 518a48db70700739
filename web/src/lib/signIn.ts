/** The steps of a sign-in as they are shown. Pure. */

import type { SignIn, SignInStep, TimelineEvent } from './types';

export const SIGN_IN_STEPS: readonly (readonly [step: SignInStep, title: string])[] = [
  ['machine', 'Machine'],
  ['tool', 'Tool'],
  ['link', 'Link'],
  ['sign_in', 'Sign-in'],
  ['credentials', 'Credentials'],
];

export type SignInStatus = 'done' | 'active' | 'pending' | 'failed';

/** The event with which each step begins. */
const BEGINS: Readonly<Record<string, SignInStep>> = {
  'signin.tool': 'tool',
  'signin.retry': 'tool',
  'signin.restarted': 'tool',
  'signin.started': 'link',
  'signin.link': 'sign_in',
  'signin.succeeded': 'credentials',
  'signin.done': 'done',
};

/** When each step of the present run began, in ms. */
export type Begun = Readonly<Partial<Record<SignInStep, number>>>;

/** Reads from the timeline when each step of the last run began. */
export function stepsBegun(events: readonly TimelineEvent[]): Begun {
  let begun: Partial<Record<SignInStep, number>> = {};
  for (const { kind, at } of events) {
    const step = BEGINS[kind];
    if (step === 'tool') {
      // Another run has nothing of the one before, and its machine was there.
      begun = begun.tool === undefined ? { ...begun } : {};
    }
    if (step !== undefined) begun[step] ??= Date.parse(at);
    else if (begun.tool === undefined) begun.machine ??= Date.parse(at);
  }
  return begun;
}

export interface SignInRow {
  step: SignInStep;
  title: string;
  status: SignInStatus;
  /** How long it took, in ms, where both its ends are known. */
  tookMs?: number;
  /** When it began, in ms; only while it is active. */
  beganAt?: number;
}

export function signInRows(signIn: SignIn, begun: Begun): SignInRow[] {
  const order = SIGN_IN_STEPS.map(([step]) => step);
  const bad = signIn.outcome !== undefined && signIn.outcome !== 'succeeded';
  let at = signIn.step === 'done' ? order.length : order.indexOf(signIn.step);
  // It failed in the last step that it came to.
  if (bad && signIn.step === 'done') at = order.findLastIndex((step) => begun[step] !== undefined);
  return SIGN_IN_STEPS.map(([step, title], i): SignInRow => {
    const began = begun[step];
    if (i < at) {
      const next = begun[order[i + 1] ?? 'done'];
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
      return 'Sign in on the desktop below';
    case 'credentials':
      return 'Fetching the credentials';
    case 'done':
      return 'Signed in';
  }
}

/** What to do about an end that is no success. */
export function whatToDo(signIn: SignIn): string {
  switch (signIn.outcome) {
    case 'refused':
      return 'Nobody was signed in. Try again for a new link; the one before is void.';
    case 'expired':
      return 'Try again for a new link, and sign in within the time that is shown.';
    case 'failed':
      return 'Look at what the tool printed, then try again. It runs anew on the same machine.';
    default:
      return '';
  }
}

/** With a full stop, so that another sentence may follow. */
export function sentence(text: string): string {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

/** How the link is to be used. */
export function linkHint(flow: SignIn['flow']): string {
  switch (flow) {
    case 'loopback':
      return 'The page is open there. Its link works on that machine alone, where the provider’s answer goes.';
    case 'paste_code':
      return 'The page is open on the desktop. At its end it shows a code: bring it here.';
    case 'device_code':
      return 'The page is open on the desktop, and its link works in any browser.';
  }
}

/** A file mode as people write it. */
export function octal(mode: number): string {
  return (mode & 0o7777).toString(8).padStart(4, '0');
}
