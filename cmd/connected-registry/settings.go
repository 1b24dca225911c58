package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/connected-registry/connected-registry/internal/hierarchy"
	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
	"github.com/connected-registry/connected-registry/internal/twin"
)

// What `az acr connected-registry get-settings` prints in place of a password that it does not make.
const noPassword = "<use --generate-password to generate a new password>"

// maxHierarchy bounds the file of a hierarchy, in bytes.
const maxHierarchy = 32 << 20

// hierarchyFile is the tree as it is kept between two commands; it holds no password, only their hashes.
type hierarchyFile struct {
	Registries []hierarchy.Node `json:"connectedRegistries"`
}

func hierarchyFlag(cmd *cobra.Command) *string {
	return cmd.PersistentFlags().String("hierarchy", "connected-registries.json", "file with the tree of connected registries, read and written here; it holds no password")
}

func readHierarchy(path string) (hierarchy.Tree, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return hierarchy.Tree{}, nil
	}
	if err != nil {
		return hierarchy.Tree{}, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	var file hierarchyFile
	if err := json.NewDecoder(io.LimitReader(f, maxHierarchy)).Decode(&file); err != nil {
		return hierarchy.Tree{}, fmt.Errorf("%s: %w", path, err)
	}
	tree, err := hierarchy.NewTree(file.Registries)
	if err != nil {
		return tree, fmt.Errorf("%s: %w", path, plain(err))
	}
	return tree, nil
}

// writeHierarchy replaces the file in one step.
func writeHierarchy(path string, tree hierarchy.Tree) error {
	body, err := json.MarshalIndent(hierarchyFile{tree.Nodes()}, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".connected-registries-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already when all went well
	_, err = tmp.Write(append(body, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// plain is the sentence of an error without its code, which is for clients.
func plain(err error) error {
	var e *registry.Error
	if errors.As(err, &e) {
		return errors.New(e.Message)
	}
	return err
}

// settings is what get-settings prints.
type settings struct {
	User        string `json:"SYNC_TOKEN_USER"`
	Password    string `json:"SYNC_TOKEN_PASSWORD"`
	Certificate string `json:"ACR_REGISTRY_CERTIFICATE_VOLUME"`
	Data        string `json:"ACR_REGISTRY_DATA_VOLUME"`
	Connection  string `json:"ACR_REGISTRY_CONNECTION_STRING"`
	LoginServer string `json:"ACR_REGISTRY_LOGIN_SERVER"`
}

func settingsOf(n hierarchy.Node, password string) settings {
	return settings{
		User: n.Name, Password: password, Certificate: twin.DefaultCertificateVolume, Data: twin.DefaultDataVolume,
		LoginServer: "<Optional: connected registry login server. More info at https://aka.ms/acr/connected-registry>",
		Connection: fmt.Sprintf("ConnectedRegistryName=%s;SyncTokenName=%[1]s;SyncTokenPassword=%s;ParentGatewayEndpoint=%s;ParentEndpointProtocol=%s",
			n.Name, password, n.Endpoint, n.Protocol),
	}
}

// outcome is what a command that changes the tree answers.
type outcome struct {
	Settings *settings         `json:"settings,omitempty"`
	Patches  []hierarchy.Patch `json:"twinPatches"`
}

// print writes it; JSON is what a script merges into the twins.
func (o outcome) print(w io.Writer, output string) error {
	switch output {
	case "json":
		return printJSON(w, o)
	case "table":
	default:
		return fmt.Errorf("--output %s: want table or json", output)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s := o.Settings; s != nil {
		fmt.Fprintln(t, "SETTING\tVALUE")
		for _, row := range [][2]string{
			{"SYNC_TOKEN_USER", s.User},
			{"SYNC_TOKEN_PASSWORD", s.Password},
			{"ACR_REGISTRY_CERTIFICATE_VOLUME", s.Certificate},
			{"ACR_REGISTRY_DATA_VOLUME", s.Data},
			{"ACR_REGISTRY_CONNECTION_STRING", s.Connection},
			{"ACR_REGISTRY_LOGIN_SERVER", s.LoginServer},
		} {
			fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
		}
		fmt.Fprintln(t)
	}
	if len(o.Patches) > 0 {
		fmt.Fprintln(t, "TWIN OF\tDESIRED PROPERTY\tVALUE")
	}
	for _, p := range o.Patches {
		for _, c := range p.Commands {
			fmt.Fprintf(t, "(cloud)\t-\t%s\n", c)
		}
		for _, line := range flatten("", p.Properties) {
			fmt.Fprintf(t, "%s\t%s\t%s\n", p.Registry, line[0], line[1])
		}
	}
	return t.Flush()
}

// flatten lists the leaves of a patch by their paths.
func flatten(path string, v any) (lines [][2]string) {
	m, ok := v.(map[string]any)
	if !ok {
		raw, err := json.Marshal(v)
		if err != nil {
			raw = []byte(err.Error())
		}
		text := strings.Trim(string(raw), `"`)
		return [][2]string{{path, text}}
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		lines = append(lines, flatten(strings.TrimPrefix(path+"."+k, "."), m[k])...)
	}
	return lines
}

// longNotes warns of strings that no twin can carry.
func longNotes(w io.Writer, patches []hierarchy.Patch) {
	for _, p := range patches {
		for _, line := range flatten("", p.Properties) {
			if len(line[1]) > twin.MaxString {
				fmt.Fprintf(w, "%s of %s has %d bytes, a twin takes %d: use wildcards, or put scopeMaps and clientTokens into the tokens file of that registry (--tokens)\n",
					line[0], p.Registry, len(line[1]), twin.MaxString)
			}
		}
	}
}

// newPassword makes one of 256 bits, and how it stands in a document.
func newPassword() (password, hash string) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails, as its documentation says
	password = base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(password))
	return password, "sha256:" + hex.EncodeToString(sum[:])
}

// words splits the values of a flag that may be repeated, and may hold several between blanks or commas.
func words(values []string) (list []string) {
	for _, v := range values {
		list = append(list, strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ',' })...)
	}
	return list
}

func settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "Make a connected registry's sync token, connection string and twin patches, as `az acr connected-registry` does",
		Long: "Make a connected registry's sync token and connection string, and print what changes in its module twin and in those of all above.\n" +
			"The tree is kept in the file --hierarchy, which holds no password; nothing is sent anywhere.",
	}
	file := hierarchyFlag(cmd)
	cmd.AddCommand(createCommand(file), getSettingsCommand(file), deleteCommand(file))
	return cmd
}

func createCommand(file *string) *cobra.Command {
	var n hierarchy.Node
	var mode string
	var repositories, clientTokens []string
	var generate int
	cmd := &cobra.Command{Use: "create", Short: "Add a connected registry to the tree", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVarP(&n.Name, "name", "n", "", "name of the connected registry: 5 to 40 letters and digits, a letter first")
	f.StringVarP(&mode, "mode", "m", string(registry.ReadOnly), "ReadOnly or ReadWrite")
	f.StringVarP(&n.Parent, "parent", "p", "", "name of the connected registry above; empty is the cloud registry")
	f.StringArrayVar(&repositories, "repository", nil, "repositories to sync, between blanks or commas; may be repeated")
	f.StringArrayVar(&clientTokens, "client-tokens", nil, "client tokens of a registry above that work here too")
	f.StringVarP(&n.Schedule, "sync-schedule", "s", "* * * * *", "five cron fields in UTC; \"* * * * *\" is continuous")
	f.StringVarP(&n.Window, "sync-window", "w", "", "ISO 8601 duration, PT1H to P7D; with a schedule that is not continuous")
	f.StringVar(&n.MessageTTL, "sync-message-ttl", "P2D", "ISO 8601 duration, P1D to P90D")
	endpointFlags(cmd, &n, &generate)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := readHierarchy(*file)
		if err != nil {
			return err
		}
		if n.Mode, err = registry.ParseMode(mode); err != nil {
			n.Mode = "" // which the tree refuses in the words of the Azure CLI
		}
		if err := checkSync(n); err != nil {
			return err
		}
		if err := placeParent(&n, cmd.ErrOrStderr()); err != nil {
			return err
		}
		if len(words(repositories)) == 0 {
			return errors.New("argument error: --repository must be provided")
		}
		n.ClientTokens = words(clientTokens)
		after, err := before.Add(n, words(repositories))
		if err != nil {
			return plain(err)
		}
		return finish(cmd, *file, before, after, n.Name, generate, *output)
	}
	_ = cmd.MarkFlagRequired("name") // it is there
	return cmd
}

// endpointFlags are those of get-settings.
func endpointFlags(cmd *cobra.Command, n *hierarchy.Node, generate *int) {
	f := cmd.Flags()
	f.StringVar(&n.Endpoint, "gateway-endpoint", "", "host[:port] of the parent as this registry sees it; default $IOTEDGE_PARENTHOSTNAME:8000 below another one")
	f.StringVar(&n.Protocol, "parent-protocol", "https", "http or https; https below a cloud registry")
	f.IntVar(generate, "generate-password", 0, "make password 1 or 2 anew; the other one works on")
}

// checkSync refuses what the registry would.
func checkSync(n hierarchy.Node) error {
	s, err := schedule.Parse(n.Schedule)
	if err != nil {
		return fmt.Errorf("--sync-schedule: %w", err)
	}
	if n.Window != "" {
		if _, err := schedule.ParseDuration(n.Window, twin.MinSyncWindow, twin.MaxSyncWindow); err != nil {
			return fmt.Errorf("--sync-window: %w", err)
		}
	} else if !s.Continuous() {
		return errors.New("--sync-window is required with a schedule that is not continuous: PT1H to P7D")
	}
	if _, err := schedule.ParseDuration(n.MessageTTL, twin.MinMessageTTL, twin.MaxMessageTTL); err != nil {
		return fmt.Errorf("--sync-message-ttl: %w", err)
	}
	return nil
}

// placeParent completes and checks the endpoint of the parent.
func placeParent(n *hierarchy.Node, warn io.Writer) error {
	if n.Endpoint == "" && n.Parent != "" {
		n.Endpoint = "$IOTEDGE_PARENTHOSTNAME:8000"
	}
	if n.Endpoint == "" {
		return errors.New("--gateway-endpoint is required below a cloud registry: <registry>.<region>.data.azurecr.io, or any registry's host[:port]")
	}
	n.Protocol = strings.ToLower(n.Protocol)
	if n.Protocol != "http" && n.Protocol != "https" {
		return fmt.Errorf("--parent-protocol %s: want http or https", n.Protocol)
	}
	if n.Protocol == "http" && twin.IsCloud(n.Endpoint) {
		fmt.Fprintln(warn, "Parent endpoint protocol must be 'https' when parent is a cloud registry.")
		n.Protocol = "https"
	}
	_, err := twin.ParseEndpoint(n.Endpoint, func(string) (string, bool) { return "host", true }) // a variable is the device's
	if err != nil {
		return fmt.Errorf("--gateway-endpoint: %w", err)
	}
	return nil
}

func getSettingsCommand(file *string) *cobra.Command {
	var want hierarchy.Node
	var generate int
	cmd := &cobra.Command{
		Use: "get", Aliases: []string{"get-settings", "show"}, Short: "Print the settings of a connected registry, with a new password if one is asked for", Args: cobra.NoArgs,
	}
	name := cmd.Flags().StringP("name", "n", "", "name of the connected registry")
	endpointFlags(cmd, &want, &generate)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := readHierarchy(*file)
		if err != nil {
			return err
		}
		n, err := before.Get(*name)
		if err != nil {
			return plain(err)
		}
		if want.Endpoint != "" {
			n.Endpoint = want.Endpoint
		}
		if cmd.Flags().Changed("parent-protocol") {
			n.Protocol = want.Protocol
		}
		if err := placeParent(&n, cmd.ErrOrStderr()); err != nil {
			return err
		}
		after, err := before.Set(n.Name, func(x *hierarchy.Node) { x.Endpoint, x.Protocol = n.Endpoint, n.Protocol })
		if err != nil {
			return plain(err)
		}
		return finish(cmd, *file, before, after, n.Name, generate, *output)
	}
	_ = cmd.MarkFlagRequired("name") // it is there
	return cmd
}

// finish makes a password where one is asked for, keeps the tree, and prints settings and patches.
func finish(cmd *cobra.Command, file string, before, after hierarchy.Tree, name string, generate int, output string) error {
	password := noPassword
	switch generate {
	case 0:
	case 1, 2:
		var hash string
		password, hash = newPassword()
		var err error
		if after, err = after.Set(name, func(n *hierarchy.Node) { n.Passwords[generate-1] = hash }); err != nil {
			return plain(err)
		}
	default:
		return fmt.Errorf("--generate-password %d: want 1 or 2", generate)
	}
	n, err := after.Get(name)
	if err != nil {
		return plain(err)
	}
	s := settingsOf(n, password)
	o := outcome{Settings: &s, Patches: hierarchy.Patches(before, after)}
	if n.Parent == "" && generate > 0 { // the cloud registry makes the passwords of its tokens itself
		o.Patches = append(o.Patches, hierarchy.Patch{Commands: []string{fmt.Sprintf("az acr token credential generate --registry <registry> --name %s --password%d", n.Name, generate)}})
		s.Password = fmt.Sprintf("<password%d of az acr token credential generate>", generate)
		s.Connection = settingsOf(n, s.Password).Connection
	}
	longNotes(cmd.ErrOrStderr(), o.Patches)
	if err := o.print(cmd.OutOrStdout(), output); err != nil {
		return err
	}
	return writeHierarchy(file, after)
}

func deleteCommand(file *string) *cobra.Command {
	cmd := &cobra.Command{Use: "delete", Short: "Take a connected registry out of the tree, and its token away", Args: cobra.NoArgs}
	name := cmd.Flags().StringP("name", "n", "", "name of the connected registry")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := readHierarchy(*file)
		if err != nil {
			return err
		}
		after, err := before.Delete(*name)
		if err != nil {
			return plain(err)
		}
		if err := (outcome{Patches: hierarchy.Patches(before, after)}).print(cmd.OutOrStdout(), *output); err != nil {
			return err
		}
		return writeHierarchy(*file, after)
	}
	_ = cmd.MarkFlagRequired("name") // it is there
	return cmd
}

func permissionsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "permissions", Short: "Show or change which repositories a connected registry syncs"}
	file := hierarchyFlag(cmd)
	show := &cobra.Command{Use: "show", Short: "Show the scope map of the sync token", Args: cobra.NoArgs}
	showName, showOutput := show.Flags().StringP("name", "n", "", "name of the connected registry"), outputFlag(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		tree, err := readHierarchy(*file)
		if err != nil {
			return err
		}
		n, err := tree.Get(*showName)
		if err != nil {
			return plain(err)
		}
		if *showOutput == "json" {
			return printJSON(cmd.OutOrStdout(), map[string]any{"name": n.Name, "actions": n.Scope})
		}
		for _, line := range n.Scope {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		return nil
	}
	update := &cobra.Command{
		Use: "update", Short: "Add repositories here and at all above, remove them here and at all below", Args: cobra.NoArgs,
	}
	name, output := update.Flags().StringP("name", "n", "", "name of the connected registry"), outputFlag(update)
	add := update.Flags().StringArray("add", nil, "repositories to add, between blanks or commas; may be repeated")
	remove := update.Flags().StringArray("remove", nil, "repositories to remove")
	update.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := readHierarchy(*file)
		if err != nil {
			return err
		}
		after, err := before.Update(*name, words(*add), words(*remove))
		if err != nil {
			return plain(err)
		}
		o := outcome{Patches: hierarchy.Patches(before, after)}
		longNotes(cmd.ErrOrStderr(), o.Patches)
		if err := o.print(cmd.OutOrStdout(), *output); err != nil {
			return err
		}
		return writeHierarchy(*file, after)
	}
	_ = show.MarkFlagRequired("name")   // they are there
	_ = update.MarkFlagRequired("name") //
	cmd.AddCommand(show, update)
	return cmd
}
