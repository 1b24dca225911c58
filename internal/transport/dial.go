package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// dialer opens connections. A host that is not configured must have a public address, whatever name it goes by: the
// address that was checked is the one that is dialled, so a name that changes its address in between gains nothing.
type dialer struct {
	o       ClientOptions
	hosts   hosts
	open    func(ctx context.Context, network, addr string) (net.Conn, error)
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

func newDialer(o ClientOptions, h hosts) *dialer {
	d := &dialer{o: o, hosts: h, open: o.Dial, resolve: o.Resolve}
	if d.open == nil {
		d.open = new(net.Dialer).DialContext
	}
	if open := d.open; o.Link != nil {
		d.open = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := open(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return meteredConn{conn, o.Link}, nil
		}
	}
	if d.resolve == nil {
		d.resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return d
}

// meteredConn counts every byte of a connection, of headers and TLS too: what a metered link counts, but for the packets.
type meteredConn struct {
	net.Conn
	link *Link
}

func (c meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.link.count(n)
	return n, err
}

func (c meteredConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.link.count(n)
	return n, err
}

// dial opens a plain connection. There is no proxy for http: only a gateway is asked without TLS.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeouts.Connect)
	defer cancel()
	return d.connect(ctx, network, addr)
}

// dialTLS opens a TLS connection, verified with the roots as they are now.
func (d *dialer) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	connectCtx, cancel := context.WithTimeout(ctx, d.o.Timeouts.Connect)
	defer cancel()
	conn, err := d.connectOrProxy(connectCtx, network, addr)
	if err != nil {
		return nil, err
	}
	return d.secure(ctx, conn, addr, "h2", "http/1.1")
}

// secure runs the handshake. Without roots there is no connection.
func (d *dialer) secure(ctx context.Context, conn net.Conn, addr string, protocols ...string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		_ = conn.Close()
		return nil, err
	}
	var roots *x509.CertPool
	if d.o.RootCAs != nil {
		var err error
		if roots, err = d.o.RootCAs(); err != nil {
			return fail(rootsError(addr, err))
		}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fail(err)
	}
	host, _, _ = strings.Cut(host, "%") // a zone is no part of a certificate
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeouts.Handshake)
	defer cancel()
	tc := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: protocols})
	if err := tc.HandshakeContext(ctx); err != nil {
		return fail(handshakeError(addr, err))
	}
	return tc, nil
}

// rootsError says why there is nothing to verify the certificate with, where that was written for a person.
func rootsError(addr string, err error) error {
	why := "the certificates to trust cannot be read"
	var known *registry.Error
	if errors.As(err, &known) {
		why = known.Message
	}
	return registry.ErrUnavailable.WithMessage("no connection to %s: %s", addr, why).Wrap(err)
}

// handshakeError says what is wrong with the certificate, since that is what an operator has to mend.
func handshakeError(addr string, err error) error {
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) {
		return registry.ErrUnavailable.WithMessage("no connection to %s: its certificate is not good: %v", addr, verify.Err).Wrap(err)
	}
	return registry.ErrUnavailable.WithMessage("no connection to %s: the TLS handshake failed", addr).Wrap(err)
}

// connect dials addr after checking where it leads.
func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.hosts.reaches(addr) {
		return d.open(ctx, network, addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := d.public(ctx, host)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	for _, ip := range ips {
		if conn, err = d.open(ctx, network, net.JoinHostPort(ip.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// public returns the addresses of a host that is not configured, or DENIED where one of them is private and not the
// parent's own.
func (d *dialer) public(ctx context.Context, host string) ([]netip.Addr, error) {
	ips, err := d.lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	var own []netip.Addr
	for _, ip := range ips {
		if !isPrivate(ip) {
			continue
		}
		if own == nil && d.hosts.parent != "" {
			own, _ = d.lookup(ctx, d.hosts.parent) // none found: nothing is the parent's own
		}
		if !slices.Contains(own, ip) {
			return nil, registry.ErrDenied.WithMessage("refused to connect to %s: its address %s is not public and it is not the configured registry", host, ip)
		}
	}
	return ips, nil
}

func (d *dialer) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := d.resolve(ctx, host)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	if err == nil && len(ips) == 0 {
		err = errors.New("no address")
	}
	return ips, err
}

// special are ranges that lead into a site, a machine or a cloud's own services, beside those netip knows.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),    // carrier-grade NAT
	netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved and broadcast
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host services
	netip.MustParsePrefix("64:ff9b::/96"),     // NAT64, reaches any IPv4 address
	netip.MustParsePrefix("64:ff9b:1::/48"),   // NAT64, local
	netip.MustParsePrefix("2002::/16"),        // 6to4, holds an IPv4 address
	netip.MustParsePrefix("2001::/32"),        // Teredo
	netip.MustParsePrefix("fec0::/10"),        // site-local
}

func isPrivate(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return true // loopback, link-local, multicast and unspecified are not global unicast
	}
	return slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// connectOrProxy dials addr for TLS, through a proxy where one is configured for it.
func (d *dialer) connectOrProxy(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.o.Proxy == nil {
		return d.connect(ctx, network, addr)
	}
	proxy, err := d.o.Proxy(&url.URL{Scheme: "https", Host: addr})
	if err != nil {
		return nil, fmt.Errorf("proxy for %s: %w", addr, err)
	}
	if proxy == nil {
		return d.connect(ctx, network, addr)
	}
	if !d.hosts.reaches(addr) {
		host, _, _ := net.SplitHostPort(addr)
		// A name that only the proxy can resolve passes; one that is known to be private does not.
		if _, err := d.public(ctx, host); errors.Is(err, registry.ErrDenied) {
			return nil, err
		}
	}
	return d.tunnel(ctx, network, addr, proxy)
}

// tunnel asks an HTTP proxy for a connection to addr (RFC 9110, section 9.3.6).
func (d *dialer) tunnel(ctx context.Context, network, addr string, proxy *url.URL) (net.Conn, error) {
	if proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil, registry.ErrUnavailable.WithMessage("no connection to %s: a proxy of scheme %q is not supported, want http or https", addr, proxy.Scheme)
	}
	conn, err := d.open(ctx, network, hostPort(proxy))
	if err == nil && proxy.Scheme == "https" {
		conn, err = d.secure(ctx, conn, hostPort(proxy), "http/1.1")
	}
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	fail := func(err error) (net.Conn, error) {
		_ = conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	if err := req.Write(conn); err != nil {
		return fail(err)
	}
	// The target speaks only after our handshake, so nothing of it can be left in the reader.
	br := bufio.NewReaderSize(&headerReader{conn: conn, left: maxHeaderBytes}, 1)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close() // an answer to CONNECT has none
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("it answers %s to CONNECT %s", resp.Status, addr))
	}
	if br.Buffered() > 0 {
		return fail(errors.New("it sent more than its answer"))
	}
	return conn, nil
}

// headerReader bounds what is read of a proxy's answer.
type headerReader struct {
	conn net.Conn
	left int
}

func (r *headerReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errors.New("the answer's header is too large")
	}
	n, err := r.conn.Read(p)
	r.left -= n
	return n, err
}
