/* decode.h -- pages in, tokens out: what the decode role adds to a node. */
#ifndef BATON_DECODE_H
#define BATON_DECODE_H

#include "node/node.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const node_role decode_role;          /* decode.c: a sequence's states, pure */
extern const node_service decode_service;    /* service.c: the Decode method */

#ifdef __cplusplus
}
#endif
#endif
