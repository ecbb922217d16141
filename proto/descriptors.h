/* descriptors.h -- the FileDescriptorSet of all that clients may call (baton.v1, grpc.health.v1,
 * grpc.reflection.v1 and v1alpha), as protoc writes it; made at build time for rpc_reflection_add(). */
#ifndef BATON_PROTO_DESCRIPTORS_H
#define BATON_PROTO_DESCRIPTORS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

extern const unsigned char proto_descriptors[];
extern const size_t proto_descriptors_bytes;

#ifdef __cplusplus
}
#endif
#endif
