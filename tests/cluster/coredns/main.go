// The part of CoreDNS that answers for a cluster's services, and for names of a made-up outside world from a file.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which a query passes them; CoreDNS knows no directive that isn't listed.
	dnsserver.Directives = []string{"bind", "errors", "cache", "kubernetes", "hosts", "template"}
	coremain.Run()
}
