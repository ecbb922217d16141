/* access.c -- who may call what: one row for each method of proto/. A method without a row is called by nobody;
 * tests/unit/cluster_access.c compares the rows with the services that protoc-c made.
 *
 * Clients have the model, admins the cluster too. Nodes are told what to do by coordinators alone, so that no client can
 * name a page or a ticket. Whoever has any credential may ask whether a server serves. */
#include "cluster/cluster.h"

enum {
    ANYBODY = RPC_COORDINATOR | RPC_NODE | RPC_CLIENT | RPC_ADMIN,
    CLIENTS = RPC_CLIENT | RPC_ADMIN,
};

const rpc_access cluster_access[] = {
    {"/baton.v1.Inference/Generate", CLIENTS},
    {"/baton.v1.Inference/GenerateOnce", CLIENTS},
    {"/baton.v1.Inference/Tokenize", CLIENTS},
    {"/baton.v1.Inference/Detokenize", CLIENTS},
    {"/baton.v1.Inference/ListModels", CLIENTS},
    {"/baton.v1.Inference/GetModel", CLIENTS},
    {"/baton.v1.Cluster/Topology", RPC_ADMIN},
    {"/baton.v1.Cluster/WatchTopology", RPC_ADMIN},
    {"/baton.v1.Cluster/Drain", RPC_ADMIN},
    {"/baton.v1.Cluster/Undrain", RPC_ADMIN},
    {"/baton.v1.Cluster/SetRole", RPC_ADMIN},
    {"/baton.node.v1.Node/Decode", RPC_COORDINATOR},
    {"/baton.node.v1.Node/Prefill", RPC_COORDINATOR},
    {"/baton.node.v1.Node/Watch", RPC_COORDINATOR},
    {"/baton.node.v1.Node/Control", RPC_COORDINATOR},
    {"/grpc.health.v1.Health/Check", ANYBODY},
    {"/grpc.health.v1.Health/Watch", ANYBODY},
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", CLIENTS},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", CLIENTS},
};
const int cluster_access_count = sizeof cluster_access / sizeof *cluster_access;
