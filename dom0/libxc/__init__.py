"""Dom0's control library: XenControl has Xen's control operations as calls, pv.build makes a PV guest."""
