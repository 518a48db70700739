/** The form of a new session: its values, and the request that they make. Pure. */

import type { CreateSession, Screen } from './types';

export interface FormValues {
  provider: string;
  name: string;
  /** `window`, `WxH`, or `custom`. */
  screen: string;
  width: number | null;
  height: number | null;
  startUrl: string;
  memoryMib: number | null;
  vcpus: number | null;
  locale: string;
  timezone: string;
  /** Age public key; of use where the provider hands credentials over. */
  recipient: string;
}

export const SCREENS: readonly Screen[] = [
  { width: 1280, height: 800 },
  { width: 1440, height: 900 },
  { width: 1920, height: 1080 },
];

/** Values to begin with; `like` is a request made before. */
export function initialValues(
  here: { locale: string; timezone: string },
  like: CreateSession = {},
): FormValues {
  const { screen } = like;
  const listed = screen && SCREENS.some((s) => sizeName(s) === sizeName(screen));
  return {
    provider: like.provider ?? 'desktop',
    name: like.name ?? '',
    screen: screen === undefined ? '1280x800' : listed ? sizeName(screen) : 'custom',
    width: screen?.width ?? 1280,
    height: screen?.height ?? 800,
    startUrl: like.startUrl ?? '',
    memoryMib: like.memoryMib ?? null,
    vcpus: like.vcpus ?? null,
    locale: like.locale ?? here.locale,
    timezone: like.timezone ?? here.timezone,
    recipient: like.recipient ?? '',
  };
}

export function sizeName(screen: Screen): string {
  return `${screen.width}x${screen.height}`;
}

/** The request that a form makes. What was left empty is left to the server. */
export function requestFrom(
  values: FormValues,
  windowSize: Screen,
  wantsRecipient = false,
): CreateSession {
  const request: CreateSession = { provider: values.provider };
  const name = values.name.trim();
  if (name) request.name = name;
  request.screen = screenOf(values, windowSize);
  const url = values.startUrl.trim();
  if (url) request.startUrl = withScheme(url);
  if (values.memoryMib !== null) request.memoryMib = values.memoryMib;
  if (values.vcpus !== null) request.vcpus = values.vcpus;
  if (values.locale.trim()) request.locale = values.locale.trim();
  if (values.timezone.trim()) request.timezone = values.timezone.trim();
  if (wantsRecipient && values.recipient.trim()) request.recipient = values.recipient.trim();
  return request;
}

function screenOf(values: FormValues, windowSize: Screen): Screen {
  if (values.screen === 'window') {
    // Even numbers of pixels suit every encoder.
    const even = (n: number, least: number) => Math.max(least, Math.floor(n / 2) * 2);
    return { width: even(windowSize.width, 320), height: even(windowSize.height, 240) };
  }
  if (values.screen === 'custom') {
    return { width: values.width ?? 0, height: values.height ?? 0 };
  }
  const [width, height] = values.screen.split('x').map(Number);
  return { width: width ?? 1280, height: height ?? 800 };
}

/** `example.org` as people write it, as the address that they mean. */
export function withScheme(url: string): string {
  return /^[a-z][a-z0-9+.-]*:/i.test(url) && !/^[^/]+:\d+(\/|$)/.test(url) ? url : `https://${url}`;
}

/** The field of the form that a field of the API belongs to. */
export function formField(field: string | undefined): string | undefined {
  if (field === undefined) return undefined;
  return field.startsWith('screen') ? 'screen' : field;
}
