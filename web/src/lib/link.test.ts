import { describe, expect, it } from 'vitest';
import { delayMs } from './backoff';
import {
  GOOD_MS,
  STARTING_MS,
  causeOf,
  explain,
  initialLink,
  step,
  type LinkEvent,
  type LinkState,
} from './link';

const MIDDLE = 0.5;

function run(events: [LinkEvent, number][], from: LinkState = initialLink()): LinkState {
  return events.reduce((state, [event, at]) => step(state, event, at, MIDDLE), from);
}

const closed = (code: number): LinkEvent => ({ type: 'closed', code, reason: '' });

describe('delays', () => {
  it('are 1, 2, 4, 8, 16 s and then stay there', () => {
    expect([0, 1, 2, 3, 4, 5, 50].map((n) => delayMs(n, MIDDLE))).toEqual([
      1000, 2000, 4000, 8000, 16000, 16000, 16000,
    ]);
  });

  it('are spread by a fifth to both sides and never leave that', () => {
    expect(delayMs(0, 0)).toBe(800);
    expect(delayMs(4, 0)).toBe(12_800);
    for (let i = 0; i < 200; i++) {
      const delay = delayMs(4, Math.random());
      expect(delay).toBeGreaterThanOrEqual(12_800);
      expect(delay).toBeLessThanOrEqual(19_200);
    }
    expect(
      new Set(Array.from({ length: 20 }, () => delayMs(3, Math.random()))).size,
    ).toBeGreaterThan(10);
  });
});

describe('a link', () => {
  it('opens', () => {
    const state = run([
      [{ type: 'start' }, 0],
      [{ type: 'opened' }, 10],
    ]);
    expect(state).toMatchObject({ phase: 'open', cause: null, wasOpen: true, attempt: 0 });
  });

  it('waits longer after each failure in a row', () => {
    let state = run([[{ type: 'start' }, 0]]);
    const waits: number[] = [];
    let now = 0;
    for (let i = 0; i < 6; i++) {
      state = step(state, closed(1006), now, MIDDLE);
      expect(state.phase).toBe('waiting');
      waits.push((state.nextAt ?? 0) - now);
      now = state.nextAt ?? 0;
      state = step(state, { type: 'due' }, now, MIDDLE);
      expect(state.phase).toBe('connecting');
    }
    expect(waits).toEqual([1000, 2000, 4000, 8000, 16000, 16000]);
  });

  it('starts the count anew after a link that stood, and only then', () => {
    const failing = run([
      [{ type: 'start' }, 0],
      [closed(1006), 0],
      [{ type: 'due' }, 1000],
      [closed(1006), 1000],
      [{ type: 'due' }, 3000],
      [{ type: 'opened' }, 3000],
    ]);
    expect(step(failing, closed(1006), 3000 + GOOD_MS, MIDDLE).nextAt).toBe(3000 + GOOD_MS + 1000);
    expect(step(failing, closed(1006), 3100, MIDDLE).nextAt).toBe(3100 + 4000);
  });

  it('stops for good when the session ended or never existed', () => {
    for (const code of [4410, 4404]) {
      const state = run([
        [{ type: 'start' }, 0],
        [closed(code), 5],
      ]);
      expect(state.phase).toBe('stopped');
      for (const type of ['wake', 'due', 'retry'] as const) {
        expect(step(state, { type }, 9_000, MIDDLE)).toBe(state);
      }
      expect(step(state, { type: 'unblock' }, 9_000, MIDDLE).phase).toBe('connecting');
    }
  });

  it('keeps looking at a machine that is starting without counting failures', () => {
    let state = run([[{ type: 'start' }, 0]]);
    for (let now = 0; now < 40_000; now += STARTING_MS) {
      state = step(state, closed(4409), now, MIDDLE);
      expect(state).toMatchObject({ phase: 'waiting', cause: 'starting', attempt: 0 });
      expect(state.nextAt).toBe(now + STARTING_MS);
      state = step(state, { type: 'due' }, now + STARTING_MS, MIDDLE);
    }
  });

  it('tries at once when network or tab come back, or a person asks', () => {
    const waiting = run([
      [{ type: 'start' }, 0],
      [closed(1006), 100],
    ]);
    for (const type of ['wake', 'retry', 'unblock'] as const) {
      const again = step(waiting, { type }, 700, MIDDLE);
      expect(again).toMatchObject({ phase: 'connecting', attempt: 0 });
    }
  });

  it('does not start two attempts for two wake-ups', () => {
    const waiting = run([
      [{ type: 'start' }, 1000],
      [closed(1006), 1001],
    ]);
    const soon = step(waiting, { type: 'wake' }, 1100, MIDDLE);
    expect(soon).toMatchObject({ phase: 'waiting', nextAt: 1500, attempt: 0 });
    expect(step(soon, { type: 'wake' }, 1200, MIDDLE)).toBe(soon);
    expect(step(waiting, { type: 'wake' }, 1600, MIDDLE).phase).toBe('connecting');
  });

  it('waits for a sign-in without a timer', () => {
    const state = run([
      [{ type: 'start' }, 0],
      [closed(4401), 1],
    ]);
    expect(state).toMatchObject({ phase: 'blocked', nextAt: null, cause: 'signed_out' });
    expect(step(state, { type: 'wake' }, 10_000, MIDDLE)).toBe(state);
    expect(step(state, { type: 'unblock' }, 10_000, MIDDLE).phase).toBe('connecting');
  });

  it('is blocked by a lost sign-in unless it is open', () => {
    const open = run([
      [{ type: 'start' }, 0],
      [{ type: 'opened' }, 1],
    ]);
    expect(step(open, { type: 'block' }, 2, MIDDLE)).toBe(open);
    const waiting = step(open, closed(1006), 3, MIDDLE);
    expect(step(waiting, { type: 'block' }, 4, MIDDLE)).toMatchObject({
      phase: 'blocked',
      cause: 'signed_out',
      nextAt: null,
    });
  });

  it('ignores what comes too late', () => {
    const idle = initialLink();
    expect(step(idle, closed(1006), 0, MIDDLE)).toBe(idle);
    expect(step(idle, { type: 'opened' }, 0, MIDDLE)).toBe(idle);
    const stopped = run([
      [{ type: 'start' }, 0],
      [{ type: 'opened' }, 1],
      [{ type: 'stop' }, 2],
    ]);
    expect(step(stopped, closed(1000), 3, MIDDLE)).toBe(stopped);
  });

  it('tells close codes apart, each with a sentence', () => {
    const codes = [4401, 4404, 4410, 4409, 4502, 4503, 4408, 1012, 1006];
    const causes = codes.map(causeOf);
    expect(new Set(causes).size).toBe(codes.length);
    expect(new Set(causes.map(explain)).size).toBe(codes.length);
  });
});
