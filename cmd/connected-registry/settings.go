package main

import (
	"cmp"
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
	User        string `json:"SYNC_TOKEN_USER,omitempty"`
	Password    string `json:"SYNC_TOKEN_PASSWORD,omitempty"`
	Certificate string `json:"ACR_REGISTRY_CERTIFICATE_VOLUME"`
	Data        string `json:"ACR_REGISTRY_DATA_VOLUME"`
	Connection  string `json:"ACR_REGISTRY_CONNECTION_STRING"`
	LoginServer string `json:"ACR_REGISTRY_LOGIN_SERVER"`
}

func settingsOf(n hierarchy.Node, password string) settings {
	s := settings{
		Certificate: twin.DefaultCertificateVolume, Data: twin.DefaultDataVolume,
		LoginServer: "<Optional: connected registry login server. More info at https://aka.ms/acr/connected-registry>",
	}
	signIn := "ManagedIdentityClientId=" + n.Identity
	if n.Identity == "" {
		s.User, s.Password = cmp.Or(n.SyncToken, n.Name), password
		signIn = "SyncTokenName=" + s.User + ";SyncTokenPassword=" + password
	}
	s.Connection = fmt.Sprintf("ConnectedRegistryName=%s;%s;ParentGatewayEndpoint=%s;ParentEndpointProtocol=%s", n.Name, signIn, n.Endpoint, n.Protocol)
	return s
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
			if row[1] != "" { // a managed identity has no token
				fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
			}
		}
	}
	if o.Settings != nil && len(o.Patches) > 0 {
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
	e := newEditor(cmd)
	cmd.AddCommand(createCommand(e), updateCommand(e), getSettingsCommand(e), listSettingsCommand(e), listSettingsTokensCommand(e), deleteCommand(e))
	return cmd
}

// editor is what the commands that work on the tree share.
type editor struct{ file, registry *string }

func newEditor(cmd *cobra.Command) *editor {
	f := cmd.PersistentFlags()
	return &editor{
		file:     f.String("hierarchy", "connected-registries.json", "file with the tree of connected registries, read and written here; it holds no password"),
		registry: f.StringP("registry", "r", "", "name of the cloud registry, for the commands of the Azure CLI; default: the one of the endpoint"),
	}
}

// nameFlag adds the required --name.
func nameFlag(cmd *cobra.Command) *string {
	name := cmd.Flags().StringP("name", "n", "", "name of the connected registry")
	_ = cmd.MarkFlagRequired("name") // it is there
	return name
}

// change is what a command makes of the tree.
type change struct {
	tree     hierarchy.Tree
	name     string // whose settings are printed; empty: nobody's
	generate int    // which password to make
}

// edit reads the tree, prints what the change changes, and keeps it.
func (e *editor) edit(cmd *cobra.Command, output string, make func(before hierarchy.Tree) (change, error)) error {
	before, err := readHierarchy(*e.file)
	if err != nil {
		return err
	}
	c, err := make(before)
	if err != nil {
		return plain(err)
	}
	var o outcome
	var elsewhere []hierarchy.Patch
	if c.name != "" {
		s, made, err := c.settings()
		if err != nil {
			return plain(err)
		}
		o.Settings, elsewhere = &s, made
	}
	o.Patches = append(append([]hierarchy.Patch{}, hierarchy.Patches(before, c.tree)...), elsewhere...) // never null
	e.nameCloud(before, c.tree, o.Patches)
	notes(cmd.ErrOrStderr(), c, o.Patches)
	if err := o.print(cmd.OutOrStdout(), output); err != nil {
		return err
	}
	return writeHierarchy(*e.file, c.tree)
}

// settings makes a password where one is asked for, and returns the settings with it; and what is to be done for it with a
// token that is not the tree's.
func (c *change) settings() (s settings, elsewhere []hierarchy.Patch, err error) {
	n, err := c.tree.Get(c.name)
	if err != nil {
		return s, nil, err
	}
	password := noPassword
	switch {
	case c.generate == 0:
	case c.generate != 1 && c.generate != 2:
		return s, nil, fmt.Errorf("--generate-password %d: want 1 or 2", c.generate)
	case n.Identity != "":
		return s, nil, fmt.Errorf("--generate-password: '%s' signs in with a managed identity, which has no password", n.Name)
	case n.Parent == "": // the cloud registry makes the passwords of its tokens itself
		password = fmt.Sprintf("<password%d of az acr token credential generate>", c.generate)
		command := fmt.Sprintf("az acr token credential generate --registry <registry> --name %s --password%d", cmp.Or(n.SyncToken, n.Name), c.generate)
		elsewhere = []hierarchy.Patch{{Commands: []string{command}}}
	default:
		var hash string
		password, hash = newPassword()
		if n.SyncToken != "" { // somebody else's, who keeps it when this registry goes
			token := map[string]any{n.TokenName(): map[string]any{fmt.Sprintf("password%d", c.generate): hash}}
			elsewhere = []hierarchy.Patch{{Registry: n.Parent, Properties: map[string]any{"clientTokens": token}}}
			break
		}
		c.tree, err = c.tree.Set(n.Name, func(n *hierarchy.Node) { n.Passwords[c.generate-1] = hash })
	}
	return settingsOf(n, password), elsewhere, err
}

// nameCloud puts the name of the cloud registry into the commands, where it is known.
func (e *editor) nameCloud(before, after hierarchy.Tree, patches []hierarchy.Patch) {
	name := *e.registry
	for _, n := range append(after.Nodes(), before.Nodes()...) {
		if name == "" && n.Parent == "" && twin.IsCloud(n.Endpoint) {
			name, _, _ = strings.Cut(n.Endpoint, ".")
		}
	}
	for _, p := range patches {
		for i := range p.Commands {
			if name != "" {
				p.Commands[i] = strings.ReplaceAll(p.Commands[i], "<registry>", name)
			}
		}
	}
}

// notes warns of what no twin can carry, and of what is not in the hands of this command.
func notes(w io.Writer, c change, patches []hierarchy.Patch) {
	if len(patches) == 0 && c.name == "" {
		fmt.Fprintln(w, "Nothing changes in any twin.")
	}
	for _, p := range patches {
		if p.Registry == "" {
			continue
		}
		raw, err := json.Marshal(hierarchy.Desired(c.tree, p.Registry))
		if err == nil && len(raw) > twin.MaxDocument {
			fmt.Fprintf(w, "%s: its desired properties have %d bytes with this, a twin carries %d: use wildcards, or put scopeMaps and clientTokens into the tokens file of that registry (--tokens)\n",
				p.Registry, len(raw), twin.MaxDocument)
		}
		if n, err := c.tree.Get(p.Registry); err == nil && n.SyncToken != "" {
			fmt.Fprintf(w, "%s: the scope map of its sync token %s is not changed here; it needs: %s\n", n.Name, n.SyncToken, strings.Join(n.Scope, " "))
		}
	}
}
