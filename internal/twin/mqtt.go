package twin

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/amenzhinsky/iothub/common"
	"github.com/amenzhinsky/iothub/iotdevice/transport"
	iotmqtt "github.com/amenzhinsky/iothub/iotdevice/transport/mqtt"
	"github.com/eclipse/paho.mqtt.golang"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// The topics of edgeHub that a module listens to.
const (
	topicTwinAnswers = "$iothub/twin/res/#"
	topicPatches     = "$iothub/twin/PATCH/properties/desired/#"
	topicMethods     = "$iothub/methods/POST/#"
)

const (
	subscribed  = 1      // quality of service, at least once
	refused     = 0x80   // what a broker answers to a subscription that it does not grant
	maxPacket   = 262144 // bytes that edgeHub reads; a larger one ends the connection
	apiVersion  = "2021-04-12"
	mqttVersion = 4 // 3.1.1
)

// outputPattern is what an output may be called: it becomes a part of a topic.
var outputPattern = registry.Pattern(`^[A-Za-z0-9_-]{1,64}$`)

// credential is a user name and a password for one connection.
type credential struct {
	username, password string
}

// identity is what the library asks of credentials. It has no secrets: user name and password are set beside it.
type identity struct{ edge Edge }

func (i identity) GetDeviceID() string            { return i.edge.DeviceID }
func (i identity) GetHostName() string            { return i.edge.IoTHubHostname }
func (i identity) GetModuleID() string            { return i.edge.ModuleID }
func (i identity) GetGenerationID() string        { return i.edge.Generation }
func (i identity) GetGateway() string             { return i.edge.GatewayHostname }
func (i identity) GetBroker() string              { return i.edge.GatewayHostname }
func (identity) GetCertificate() *tls.Certificate { return nil }
func (identity) GetSAK() string                   { return "" }
func (identity) GetWorkloadURI() string           { return "" }

// UseEdgeGateway is false so that the library's own reading of the trust bundle, after whose failure it verifies
// nothing, is never entered.
func (identity) UseEdgeGateway() bool { return false }

var errNoToken = errors.New("no tokens from here")

func (identity) Token(string, time.Duration) (*common.SharedAccessSignature, error) {
	return nil, errNoToken
}

func (identity) TokenFromEdge(_, _, _, _ string, _ time.Duration) (*common.SharedAccessSignature, error) {
	return nil, errNoToken
}

// sign makes the credential of a module that is good until expiry.
func sign(ctx context.Context, w *Workload, e Edge, product string, expiry time.Time) (credential, error) {
	resource := e.IoTHubHostname + "/devices/" + e.DeviceID + "/modules/" + e.ModuleID // escaped once, as a whole
	sas := common.SharedAccessSignature{Sr: resource, Se: expiry}
	digest, err := w.Sign(ctx, fmt.Appendf(nil, "%s\n%d", url.QueryEscape(resource), expiry.Unix()))
	if err != nil {
		return credential{}, err
	}
	sas.Sig = base64.StdEncoding.EncodeToString(digest)
	query := "?api-version=" + apiVersion
	if product != "" {
		query += "&DeviceClientType=" + strings.ReplaceAll(url.QueryEscape(product), "+", "%20")
	}
	return credential{
		username: e.IoTHubHostname + "/" + e.DeviceID + "/" + e.ModuleID + "/" + query,
		password: sas.String(),
	}, nil
}

// mqttLink is a link by the library's transport of modules.
type mqttLink struct {
	transport *iotmqtt.ModuleTransport
	conn      *endedConn
	ctx       context.Context // the life of the link: its subscriptions are bound to it
	cancel    context.CancelFunc
}

// openLink logs in on a connection and subscribes. It owns conn: an error has closed it. ctx bounds the opening only.
func openLink(ctx context.Context, conn net.Conn, edge Edge, login credential, r receiver, timeout time.Duration, log *slog.Logger) (link, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &mqttLink{conn: &endedConn{Conn: conn, ended: make(chan struct{})}, ctx: life, cancel: cancel}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	stopLife := context.AfterFunc(life, func() { _ = l.conn.Close() })
	go func() {
		<-l.conn.ended
		cancel()
		stopLife()
	}()
	client := make(chan mqtt.Client, 1)
	l.transport = iotmqtt.NewModuleTransport(iotmqtt.WithClientOptionsConfig(func(o *mqtt.ClientOptions) {
		l.configure(o, login, timeout, client)
	}))
	l.transport.SetLogger(libraryLog{log})
	// The end of its context would leave a client behind, so it has one that does not end.
	err := l.transport.Connect(context.WithoutCancel(ctx), identity{edge})
	if err == nil {
		err = l.subscribe(ctx, r, client, timeout)
	}
	if err == nil {
		return l, nil
	}
	l.close()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, context.Canceled):
		return nil, errEnded
	}
	return nil, fmt.Errorf("edgeHub: %w", err)
}

// configure sets what the library leaves open or sets otherwise.
func (l *mqttLink) configure(o *mqtt.ClientOptions, login credential, timeout time.Duration, client chan<- mqtt.Client) {
	used := false
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		if used {
			return nil, errors.New("a link connects once")
		}
		used = true
		return l.conn, nil
	})
	o.SetCredentialsProvider(func() (string, string) { return login.username, login.password })
	o.SetTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12}) // not used: the connection is open already
	o.SetProtocolVersion(mqttVersion)
	o.SetConnectTimeout(timeout)
	o.SetConnectRetry(false)
	o.SetAutoReconnect(false)
	o.SetOrderMatters(false) // in order, a handler that publishes would stop the client for good
	o.SetOnConnectHandler(func(c mqtt.Client) { client <- c })
	o.SetConnectionLostHandler(func(mqtt.Client, error) { _ = l.conn.Close() })
}

// subscribe asks for patches, methods and answers, and makes sure that edgeHub grants them: the library does not look
// at what the broker says.
func (l *mqttLink) subscribe(ctx context.Context, r receiver, client <-chan mqtt.Client, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, l.cancel)
	defer stop()
	if err := l.transport.SubscribeTwinUpdates(l.ctx, patchReceiver(r.patched)); err != nil {
		return fmt.Errorf("subscribe to patches: %w", err)
	}
	if err := l.transport.RegisterDirectMethods(l.ctx, methodReceiver(r.method)); err != nil {
		return fmt.Errorf("subscribe to methods: %w", err)
	}
	var c mqtt.Client
	select {
	case c = <-client:
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
	token, ok := c.SubscribeMultiple(map[string]byte{topicTwinAnswers: subscribed, topicPatches: subscribed, topicMethods: subscribed}, nil).(*mqtt.SubscribeToken)
	if !ok {
		return errors.New("subscribe: no token")
	}
	select {
	case <-token.Done():
	case <-l.ctx.Done():
		return fmt.Errorf("subscribe: %w", l.ctx.Err())
	}
	if err := token.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for topic, granted := range token.Result() {
		if granted == refused {
			return fmt.Errorf("subscribe to %s: refused", topic)
		}
	}
	return nil
}

func (l *mqttLink) lost() <-chan struct{} { return l.conn.ended }

func (l *mqttLink) close() {
	l.cancel()
	_ = l.transport.Close() // says goodbye if there is still somebody to hear it
	_ = l.conn.Close()
}

func (l *mqttLink) get(ctx context.Context) ([]byte, error) {
	var body []byte
	err := l.during(ctx, func(ctx context.Context) (err error) {
		body, err = l.transport.RetrieveTwinProperties(ctx)
		return err
	})
	return body, hubError("get", err)
}

func (l *mqttLink) report(ctx context.Context, body []byte) error {
	return hubError("report", l.during(ctx, func(ctx context.Context) error {
		_, err := l.transport.UpdateTwinProperties(ctx, body) // the version is not told by edgeHub
		return err
	}))
}

func (l *mqttLink) output(ctx context.Context, name string, body []byte) error {
	message := &common.Message{Payload: body, Properties: map[string]string{"$.on": name, "$.ct": "application/json", "$.ce": "utf-8"}}
	return hubError("output", l.during(ctx, func(ctx context.Context) error { return l.transport.Send(ctx, message) }))
}

// during runs f with a context that ends with the link.
func (l *mqttLink) during(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	err := f(ctx)
	if err != nil && l.ctx.Err() != nil {
		return ErrNotConnected
	}
	return err
}

// patchReceiver takes no more of a patch than the version: patches come out of order and get lost, so each is only a
// reason to ask for the twin.
type patchReceiver func(version int64)

// Dispatch implements the library's TwinStateDispatcher.
func (f patchReceiver) Dispatch(body []byte) {
	var patch struct {
		Version int64 `json:"$version"`
	}
	_ = json.Unmarshal(body, &patch) // without a version it is a reason all the same
	f(patch.Version)
}

type methodReceiver func(name string, payload []byte) (status int, body []byte)

// Dispatch implements the library's MethodDispatcher. It never returns an error: the library would send no answer then.
func (f methodReceiver) Dispatch(name string, payload []byte) (int, []byte, error) {
	status, body := f(name, payload)
	return status, body, nil
}

// libraryLog takes what the library has to say; how a connection fares is told by EdgeHub.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) debug(format string, args []any) {
	l.log.Debug("edgeHub: library", "text", fmt.Sprintf(format, args...))
}

// Errorf, Warnf, Infof and Debugf implement the library's Logger.
func (l libraryLog) Errorf(format string, args ...any) { l.debug(format, args) }

// Warnf logs at debug.
func (l libraryLog) Warnf(format string, args ...any) { l.debug(format, args) }

// Infof logs at debug.
func (l libraryLog) Infof(format string, args ...any) { l.debug(format, args) }

// Debugf logs at debug.
func (l libraryLog) Debugf(format string, args ...any) { l.debug(format, args) }

var _ transport.Credentials = identity{}
