// Package azure has a stand-in for Azure Container Registry and for Microsoft Entra ID, which enforces what their
// documentation says, and the tests of a parent in Azure. The stand-in is held to be right because Microsoft's own
// azcontainerregistry and azidentity packages work with it unmodified; that is one of the tests.
package azure
