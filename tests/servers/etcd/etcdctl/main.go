// Command etcdctl is etcd's client, for snapshots of a running member.
package main

import "go.etcd.io/etcd/etcdctl/v3/ctlv3"

func main() {
	ctlv3.MustStart()
}
