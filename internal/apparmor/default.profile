# What a container may do by default: all that its other bounds (namespaces, capabilities, seccomp, cgroups) let it do, but
# change the kernel through /proc and /sys, mount, or signal and trace processes outside. A second fence behind masked and
# read-only paths, which a container with CAP_SYS_ADMIN could take away.
profile crishim-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # From the host's processes (the kubelet, the runtime) and among the container's own.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=crishim-default,
  ptrace (trace,read,tracedby,readby) peer=crishim-default,

  deny mount,

  # Of /proc/sys a container may change what belongs to its namespaces: net, and of kernel the limits of System V IPC.
  deny /proc/sys/{abi,debug,dev,fs,user,vm}/** wklx,
  deny /proc/sys/kernel/{[^sm],s[^eh],m[^s]}** wklx,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{kcore,kmem,mem} rwklx,
  deny /proc/{acpi,bus,fs,irq,scsi}/** wklx,

  # Of /sys only the control groups, which its mount makes read-only unless the container is privileged.
  deny /sys/{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/{[^c],c[^g]}** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
