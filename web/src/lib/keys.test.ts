import { describe, expect, it } from 'vitest';
import { FUNCTION_KEYS, KEYS, chord, isWayOut, keysymOf } from './keys';

describe('keys', () => {
  it('go down in order and up in the opposite order', () => {
    expect(chord([KEYS.control, KEYS.alt, KEYS.delete]).map(([k, d]) => [k.code, d])).toEqual([
      ['ControlLeft', true],
      ['AltLeft', true],
      ['Delete', true],
      ['Delete', false],
      ['AltLeft', false],
      ['ControlLeft', false],
    ]);
  });

  it('are numbered as X11 does', () => {
    expect(FUNCTION_KEYS.map((k) => k.keysym)).toEqual([
      0xffbe, 0xffbf, 0xffc0, 0xffc1, 0xffc2, 0xffc3, 0xffc4, 0xffc5, 0xffc6, 0xffc7, 0xffc8,
      0xffc9,
    ]);
    expect(FUNCTION_KEYS[3]).toEqual(KEYS.f4);
  });

  it('type characters of any script', () => {
    expect(keysymOf('a')).toBe(0x61);
    expect(keysymOf('ß')).toBe(0xdf);
    expect(keysymOf('€')).toBe(0x010020ac);
    expect(keysymOf('😀')).toBe(0x0101f600);
    expect(keysymOf('\n')).toBe(KEYS.enter.keysym);
    expect(keysymOf('\u0007')).toBeNull();
    expect(keysymOf('')).toBeNull();
  });
});

describe('the way out', () => {
  it('is three modifiers and nothing else', () => {
    const all = { ctrlKey: true, altKey: true, shiftKey: true };
    expect(isWayOut({ ...all, key: 'Shift' })).toBe(true);
    expect(isWayOut({ ...all, key: 'Control' })).toBe(true);
    expect(isWayOut({ ...all, key: 'T' })).toBe(false);
    expect(isWayOut({ ...all, altKey: false, key: 'Shift' })).toBe(false);
  });
});
