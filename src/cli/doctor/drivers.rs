//! Network drivers of the kernel and what they can do with XDP.
//!
//! Sources: the drivers' `NETDEV_XDP_ACT_*` features (`Documentation/netlink/specs/netdev.yaml`), with the kernel
//! versions and MTU limits that <https://docs.ebpf.io/linux/program-type/BPF_PROG_TYPE_XDP/#driver-support> collects.

/// A kernel version: major and minor.
pub type Version = (u32, u32);

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// Its name in `/sys/class/net/DEVICE/device/driver` or `ethtool -i`.
    pub name: &'static str,
    /// The kernel from which it runs XDP programs itself; `None`: the kernel's generic XDP only.
    pub native: Option<Version>,
    /// The kernel from which it has AF_XDP zero-copy.
    pub zero_copy: Option<Version>,
    /// Largest MTU at which it takes an XDP program without fragments, with pages of 4 KiB.
    pub max_mtu: Option<u64>,
}

const fn driver(
    name: &'static str,
    native: Option<Version>,
    zero_copy: Option<Version>,
    max_mtu: Option<u64>,
) -> Driver {
    Driver { name, native, zero_copy, max_mtu }
}

/// The driver of that name, if it is known here.
#[must_use]
pub fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

/// The drivers that also take an XDP program for frames in pieces, and so an MTU beyond a page, and the kernel from which
/// they do (`NETDEV_XDP_ACT_RX_SG`).
const FRAGMENTS: &[(&str, Version)] = &[
    ("atlantic", (5, 19)),
    ("bnxt_en", (5, 19)),
    ("i40e", (6, 4)),
    ("ice", (6, 3)),
    ("ionic", (6, 9)),
    ("mlx5_core", (6, 4)),
    ("mvneta", (5, 18)),
    ("veth", (5, 18)),
    ("virtio_net", (6, 3)),
];

impl Driver {
    /// The kernel from which it takes XDP programs for frames in pieces, if any does.
    #[must_use]
    pub fn fragments(&self) -> Option<Version> {
        FRAGMENTS.iter().find(|(name, _)| *name == self.name).map(|(_, version)| *version)
    }
}

/// Every driver known here, by name.
pub const DRIVERS: &[Driver] = &[
    driver("atlantic", Some((5, 19)), None, Some(2048)),
    driver("be2net", None, None, None),
    driver("bnx2x", None, None, None),
    driver("bnxt_en", Some((4, 11)), None, Some(3502)),
    driver("bonding", Some((5, 15)), None, None),
    driver("bridge", None, None, None),
    driver("cpsw", Some((5, 3)), None, None),
    driver("dummy", None, None, None),
    driver("e1000", None, None, None),
    driver("e1000e", None, None, None),
    driver("ena", Some((5, 6)), None, Some(3498)),
    driver("fec", Some((6, 2)), None, None),
    driver("fsl_dpa", Some((5, 11)), None, Some(3706)),
    driver("fsl_dpaa2_eth", Some((5, 0)), Some((6, 2)), None),
    driver("fsl_enetc", Some((5, 13)), None, None),
    driver("funeth", Some((5, 18)), None, Some(3566)),
    driver("gve", Some((6, 4)), Some((6, 4)), Some(2032)),
    driver("hv_netvsc", Some((5, 6)), None, Some(3506)),
    driver("i40e", Some((4, 13)), Some((4, 20)), Some(3046)),
    driver("ice", Some((5, 5)), Some((5, 5)), Some(3046)),
    driver("ifb", None, None, None),
    driver("igb", Some((5, 10)), Some((6, 14)), Some(3046)),
    driver("igc", Some((5, 13)), Some((5, 14)), Some(1500)),
    driver("ionic", Some((6, 9)), None, None),
    driver("ixgbe", Some((4, 12)), Some((4, 20)), Some(3050)),
    driver("ixgbevf", Some((4, 17)), None, Some(3050)),
    driver("lan966x-switch", Some((6, 2)), None, None),
    driver("mana", Some((5, 17)), None, Some(3506)),
    driver("mlx4_core", Some((4, 8)), None, Some(3498)),
    driver("mlx4_en", Some((4, 8)), None, Some(3498)),
    driver("mlx5_core", Some((4, 9)), Some((5, 3)), Some(3498)),
    driver("mtk_soc_eth", Some((6, 0)), None, Some(3520)),
    driver("mvneta", Some((5, 5)), None, Some(3520)),
    driver("mvpp2", Some((5, 9)), None, Some(3552)),
    driver("netsec", Some((5, 3)), None, None),
    driver("nfp", Some((4, 10)), Some((5, 18)), None),
    driver("nicvf", Some((4, 12)), None, Some(1508)),
    driver("qede", Some((4, 10)), None, None),
    driver("r8169", None, None, None),
    driver("rvu_nicpf", Some((5, 16)), None, Some(1508)),
    driver("sfc", Some((5, 5)), None, None),
    driver("st_gmac", Some((5, 13)), Some((5, 13)), None),
    driver("tg3", None, None, None),
    driver("thunder-nicvf", Some((4, 12)), None, Some(1508)),
    driver("tsnep", Some((6, 3)), Some((6, 4)), None),
    driver("tun", Some((4, 14)), None, Some(1500)),
    driver("veth", Some((4, 19)), None, Some(3520)),
    driver("vif", Some((5, 9)), None, Some(3840)),
    driver("virtio_net", Some((4, 10)), Some((6, 11)), Some(3506)),
    driver("vmxnet3", Some((6, 6)), None, None),
];
