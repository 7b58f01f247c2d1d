/*
 * The control ring: how the guest wants packets spread over its queues, and buffers it wants to stay mapped. We spread by
 * our own hash and map nothing, so every request is answered NOT_SUPPORTED, which frontends take as an old backend.
 */
#include <unistd.h>

#include "vif.h"

static void respond(struct vif *vif, uint32_t index)
{
    union xen_netif_ctrl_sring_entry *entry = &vif->ctrl->ring[index % CTRL_ENTRIES];
    struct xen_netif_ctrl_request req = *(volatile struct xen_netif_ctrl_request *)&entry->req;
    entry->rsp = (struct xen_netif_ctrl_response){
        .id = req.id, .type = req.type, .status = XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED};
}

void ctrl_serve(struct vif *vif)
{
    uint32_t before = vif->ctrl_cons;
    uint32_t left = ring_load(&vif->ctrl->req_prod) - before;
    if (left > CTRL_ENTRIES) {
        vif_fault(vif, "the control ring ran away");
        return;
    }
    while (left--)
        respond(vif, vif->ctrl_cons++);
    __atomic_store_n(&vif->ctrl->req_event, vif->ctrl_cons + 1, __ATOMIC_SEQ_CST);
    ring_store(&vif->ctrl->rsp_prod, vif->ctrl_cons);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool wanted = vif->ctrl_cons - ring_load(&vif->ctrl->rsp_event) < vif->ctrl_cons - before;
    if (wanted && write(vif->ctrl_doorbell, &(uint64_t){1}, 8) < 0)
        return; /* full: the guest has an event coming */
}
