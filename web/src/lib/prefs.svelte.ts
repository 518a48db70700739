/** What this browser remembers of its user's choices. Nothing of a session is kept here. */

import type { CreateSession } from './types';

export type Theme = 'system' | 'light' | 'dark';
export type Scaling = 'fit' | 'native' | 'resize';
export type Quality = 'low' | 'balanced' | 'high';

const PREFIX = 'holdfast.';
/** Requests remembered, so that an ended session can be asked for again. */
const MOST_REQUESTS = 30;

function read(key: string): string | null {
  try {
    return localStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

function write(key: string, value: string): void {
  try {
    localStorage.setItem(PREFIX + key, value);
  } catch {
    // Storage may be full or forbidden; the choice then lasts as long as the page.
  }
}

function oneOf<T extends string>(key: string, values: readonly T[], otherwise: T): T {
  const value = read(key);
  return values.find((v) => v === value) ?? otherwise;
}

class Prefs {
  #theme = $state<Theme>(oneOf('theme', ['system', 'light', 'dark'], 'system'));
  #scaling = $state<Scaling>(oneOf('scaling', ['fit', 'native', 'resize'], 'fit'));
  #quality = $state<Quality>(oneOf('quality', ['low', 'balanced', 'high'], 'balanced'));
  #copyOut = $state<boolean>(oneOf('copyOut', ['on', 'off'], 'on') === 'on');

  get theme(): Theme {
    return this.#theme;
  }
  set theme(theme: Theme) {
    this.#theme = theme;
    write('theme', theme);
    if (theme === 'system') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = theme;
  }

  /** How a desktop is put into its place. */
  get scaling(): Scaling {
    return this.#scaling;
  }
  set scaling(scaling: Scaling) {
    this.#scaling = scaling;
    write('scaling', scaling);
  }

  get quality(): Quality {
    return this.#quality;
  }
  set quality(quality: Quality) {
    this.#quality = quality;
    write('quality', quality);
  }

  /** What is copied in a machine goes to this computer's clipboard by itself. */
  get copyOut(): boolean {
    return this.#copyOut;
  }
  set copyOut(on: boolean) {
    this.#copyOut = on;
    write('copyOut', on ? 'on' : 'off');
  }
}

export const prefs = new Prefs();

type Requests = [id: string, request: CreateSession][];

function requests(): Requests {
  try {
    const list: unknown = JSON.parse(read('requests') ?? '[]');
    return Array.isArray(list) ? (list as Requests) : [];
  } catch {
    return [];
  }
}

/** Remembers what a session was asked for with. */
export function rememberRequest(id: string, request: CreateSession): void {
  const list = requests().filter(([known]) => known !== id);
  write('requests', JSON.stringify([[id, request], ...list].slice(0, MOST_REQUESTS)));
}

/** What a session was asked for with in this browser. */
export function requestOf(id: string): CreateSession | undefined {
  return requests().find(([known]) => known === id)?.[1];
}
