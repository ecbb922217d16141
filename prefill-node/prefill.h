/* prefill.h -- tokens in, pages out: what the prefill role adds to a node. */
#ifndef BATON_PREFILL_H
#define BATON_PREFILL_H

#include "node/node.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const node_role prefill_role;         /* prefill.c: a sequence's states, pure */
extern const node_service prefill_service;   /* service.c: the Prefill method */
void prefill_show(void);                     /* prefill.c: its metrics are there from now on, as 0 */

#ifdef __cplusplus
}
#endif
#endif
