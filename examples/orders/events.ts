/**
 * What the services tell each other. Every event carries the whole order, so that no service has to ask another one.
 *
 *   order.created → stock → stock.reserved → payment → payment.charged  → notification, sms, order
 *                         ↘ stock.refused → order    ↘ payment.declined → stock (releases), finance, notification, order
 */
export interface Order {
  readonly id: string
  readonly customer: string
  readonly teapots: number
  readonly cents: number
}

/** The order service says that a customer's record was corrected. */
export interface CustomerChanged {
  readonly customer: string
  readonly address: string
}

/** Where a service listens. Known beforehand, so a service needs no more than the name of the ones that it hears. */
export const endpointOf = (folder: string, service: string): string => `unix://${folder}/${service}.sock`

/** What a service says to the program that started it, and what it is asked. */
export type FromService =
  | { readonly type: 'says'; readonly text: string }
  | { readonly type: 'ready'; readonly url: string | undefined }
  | { readonly type: 'answer'; readonly call: number; readonly value?: unknown; readonly error?: string }

export interface ToService {
  readonly call: number
  readonly command: 'routes' | 'announced' | 'state' | 'letters' | 'redrive' | 'close'
}
