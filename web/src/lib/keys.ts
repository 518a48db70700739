/** Keys as X11 knows them, for what a browser keeps to itself and for screens without a keyboard. */

export interface Key {
  /** X11's number. */
  readonly keysym: number;
  /** Name of the place on the keyboard, as in `KeyboardEvent.code`. */
  readonly code: string;
}

const key = (keysym: number, code: string): Key => ({ keysym, code });

export const KEYS = {
  control: key(0xffe3, 'ControlLeft'),
  alt: key(0xffe9, 'AltLeft'),
  shift: key(0xffe1, 'ShiftLeft'),
  super: key(0xffeb, 'MetaLeft'),
  escape: key(0xff1b, 'Escape'),
  tab: key(0xff09, 'Tab'),
  enter: key(0xff0d, 'Enter'),
  backspace: key(0xff08, 'Backspace'),
  delete: key(0xffff, 'Delete'),
  insert: key(0xff63, 'Insert'),
  home: key(0xff50, 'Home'),
  end: key(0xff57, 'End'),
  pageUp: key(0xff55, 'PageUp'),
  pageDown: key(0xff56, 'PageDown'),
  left: key(0xff51, 'ArrowLeft'),
  up: key(0xff52, 'ArrowUp'),
  right: key(0xff53, 'ArrowRight'),
  down: key(0xff54, 'ArrowDown'),
  print: key(0xff61, 'PrintScreen'),
  menu: key(0xff67, 'ContextMenu'),
  f4: key(0xffc1, 'F4'),
  l: key(0x6c, 'KeyL'),
  t: key(0x74, 'KeyT'),
  v: key(0x76, 'KeyV'),
  /** For together with Shift: the machine would let go of Shift to make a small letter. */
  capitalV: key(0x56, 'KeyV'),
  w: key(0x77, 'KeyW'),
} as const satisfies Record<string, Key>;

/** F1 to F12. */
export const FUNCTION_KEYS: readonly Key[] = Array.from({ length: 12 }, (_, i) =>
  key(0xffbe + i, `F${i + 1}`),
);

/** Downs in order, then ups in the opposite order. */
export function chord(keys: readonly Key[]): [Key, boolean][] {
  return [
    ...keys.map((k): [Key, boolean] => [k, true]),
    ...keys.toReversed().map((k): [Key, boolean] => [k, false]),
  ];
}

/** The keysym that types a character; `null` where there is none. */
export function keysymOf(character: string): number | null {
  const point = character.codePointAt(0);
  if (point === undefined) return null;
  if (point === 0x0a || point === 0x0d) return KEYS.enter.keysym;
  if (point === 0x09) return KEYS.tab.keysym;
  if (point === 0x08) return KEYS.backspace.keysym;
  if (point < 0x20 || (point >= 0x7f && point < 0xa0)) return null;
  // Latin-1 is itself; everything else is Unicode with a mark.
  return point <= 0xff ? point : 0x0100_0000 + point;
}

/** Control, Alt and Shift together, in any order, without another key: the way out of a machine. */
export function isWayOut(event: {
  ctrlKey: boolean;
  altKey: boolean;
  shiftKey: boolean;
  key: string;
}): boolean {
  const modifiers = ['Control', 'Alt', 'Shift'];
  return event.ctrlKey && event.altKey && event.shiftKey && modifiers.includes(event.key);
}

export const WAY_OUT = ['Ctrl', 'Alt', 'Shift'] as const;
