/* transport.c -- how bytes get to another process: one table.
 *
 * A transport hands out streams; the frames on top are the same for all. To add one: write its functions in a
 * file of its own, add its row to kvt_transports[]; the suite tests/unit/kvt_node.c then runs over it.
 *
 *   tcp   between machines and within one
 *   shm   between processes of one machine, without a copy in the kernel
 *   ucx   RDMA and whatever else UCX has, for trusted fabrics; where libucx-dev was there to build it */
#include "kvtransfer/internal.h"
#include <string.h>

const kvt_transport *const kvt_transports[] = {
    &kvt_tcp,
    &kvt_shm,
#ifdef BATON_UCX
    &kvt_ucx,
#endif
};
const int kvt_transports_count = sizeof kvt_transports / sizeof kvt_transports[0];

status kvt_transport_find(const char *name, const kvt_transport **out, error *err) {
    char known[100] = "";
    size_t used = 0;
    for (int i = 0; i < kvt_transports_count; i++) {
        if (!name || !strcmp(name, kvt_transports[i]->name)) {
            *out = kvt_transports[i];
            return (*out)->load ? (*out)->load(err) : ST_OK;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "",
                                 kvt_transports[i]->name);
    }
    if (!strcmp(name, "ucx"))
        return error_set(err, ST_UNSUPPORTED, "KV transport \"ucx\": this baton was built without UCX (libucx-dev), "
                         "expected one of: %s", known);
    return error_set(err, ST_UNSUPPORTED, "KV transport \"%.40s\" is unknown, expected one of: %s", name,
                     known);
}
