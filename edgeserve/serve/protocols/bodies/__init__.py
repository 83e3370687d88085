"""Forms of bodies that several protocols share: JSON rows and columns, tables, files of numpy, images, forms. They know
no protocol."""
